"""The state from which a run resumes, and the comparison that decides whether it may."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from speechclip.checkpoint.folder import SETTINGS, read_weights
from speechclip.common.errors import UserError
from speechclip.common.files import SUMS, lines_fingerprint, read_json, replace_folder
from speechclip.config import Config, known_keys, load, save, to_dict
from speechclip.data.mapped import release
from speechclip.model.network import SpeechNetwork

if TYPE_CHECKING:
    from speechclip.data.dataset import SpeechSource, Split
    from speechclip.train.trainer import TrainingData

TENSORS, COUNTERS = "training_state.safetensors", "training_state.json"
_BLOCK = 1 << 11  # rows that are fingerprinted at a time
_PROBES = 4  # weighted sums of a table of embeddings
_PROBE_ROUNDING = 2e-3  # rows are unit vectors: another row changes a sum by about 1, rounding by 1e-7 sqrt(N D)


@dataclass
class Progress:
    """The counters of a run. Random state is not saved: every step is seeded by (seed, step, rank).

    Attributes:
        step: finished updates.
        best: the highest mean R@10 on dev, in percent; -1 before the first evaluation.
        best_step: the step of that evaluation.
        stale: evaluations since then.
        seconds: time spent training.
        finished: the run reached the last step, or ran out of patience.
    """

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    finished: bool = False

    def record_score(self, score: float, max_steps: int, patience: int) -> bool:
        """Record the dev score at :attr:`step`, and return whether it is the best one so far.

        Args:
            score: mean R@10, in percent.
            max_steps: the last step of the run.
            patience: evaluations without a better score after which the run ends; 0 for no limit.
        """
        better = score > self.best
        if better:
            self.best, self.best_step, self.stale = score, self.step, 0
        else:
            self.stale += 1
        self.finished = self.step >= max_steps or bool(patience and self.stale >= patience)
        return better


class EmaWeights:
    """An exponential moving average of the trained parameters. Buffers, such as BatchNorm's statistics, have none.

    Args:
        model: the network whose parameters are averaged.
        decay: d of average = d * average + (1 - d) * parameter, in [0, 1). Early in training (1 + step) / (10 + step)
            is used instead if it is smaller, so that the random start soon loses its weight.
    """

    def __init__(self, model: SpeechNetwork, decay: float) -> None:
        self.decay = decay
        self.parameters = model.trained_parameters()
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after update number ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def copy_parameters(self) -> None:
        """Set the average to the present parameters."""
        for average, parameter in zip(self.average, self.parameters):
            average.copy_(parameter.detach())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model inside the block."""
        kept = [p.detach().clone() for p in self.parameters]
        self._set(self.average)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values):
            parameter.copy_(value)


def save_state(
    folder: Path, progress: Progress, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor],
    objectives: nn.Module | None = None,
) -> None:  # fmt: skip
    """Write counters, optimiser state, the unaveraged ``weights`` and the state of ``objectives`` into ``folder``."""
    from safetensors.torch import save_file

    tensors = {f"weights.{name}": value.detach().cpu().contiguous() for name, value in weights.items()}
    if objectives is not None:
        for name, value in objectives.state_dict().items():
            tensors[f"objectives.{name}"] = value.detach().cpu().contiguous()
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    # safetensors refuses entries that share memory: clone
    save_file({name: value.clone() for name, value in tensors.items()}, folder / TENSORS)
    (folder / COUNTERS).write_text(json.dumps(dataclasses.asdict(progress)) + "\n", encoding="utf-8")


def read_progress(folder: Path) -> Progress:
    """Read the counters that :func:`save_state` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return Progress(**read_json(folder / COUNTERS))
    except (UserError, TypeError) as error:
        raise UserError(
            f"{folder / COUNTERS}: missing or damaged. Move {folder} away to start training over."
        ) from error


def restore_state(
    folder: Path, optimizer: torch.optim.Optimizer, objectives: nn.Module | None = None
) -> dict[str, Tensor]:
    """Load the state of ``optimizer`` and of ``objectives``, and return the unaveraged weights.

    Raises:
        UserError: the file is damaged.
    """
    weights: dict[str, Tensor] = {}
    further: dict[str, Tensor] = {}
    states: dict[int, dict[str, Any]] = {}
    for name, value in read_weights(folder / TENSORS).items():
        kind, _, rest = name.partition(".")
        if kind == "weights":
            weights[rest] = value
        elif kind == "objectives":
            further[rest] = value
        else:
            index, _, key = rest.partition(".")
            states.setdefault(int(index), {})[key] = value
    if objectives is not None:
        objectives.load_state_dict(further)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return weights


# -- the comparison that decides whether a run resumes ---------------------------------------------------------------

#: Settings that do not change the weights: scoring, loading, logging. A key that ends with "." stands for a section.
#: utils/driver.sh keeps the same settings out of the stamp of the training stage.
WITHOUT_EFFECT = (
    "eval.", "data.workers", "data.eval_batch_size", "train.log_interval", "train.tensorboard_utterances",
)  # fmt: skip
#: The path of a frozen encoder has no effect either, if the weights at both paths are known to be the same.
_PATHS = {"model.speech_encoder.path": "speech_encoder", "model.clip.path": "clip"}


def frozen_weights(encoders: dict[str, Any], model: SpeechNetwork | None = None) -> dict[str, str]:
    """Return the fingerprint of the weights of each frozen encoder, "" if it is unknown.

    Args:
        encoders: descriptions by the name of the part, as provenance stores them.
        model: its loaded encoders take precedence over ``encoders``.
    """
    loaded = {} if model is None else {"speech_encoder": model.speech_encoder, "clip": model.clip}
    described = {**encoders, **{part: encoder.description for part, encoder in loaded.items() if encoder is not None}}
    return {part: str(facts.get("weights") or "") for part, facts in described.items()}


def data_fingerprints(data: TrainingData, model: SpeechNetwork, config: Config) -> dict[str, Any]:
    """Return fingerprints of everything that training reads, except the encoders.

    Paths of recordings and images are left out: a corpus that was moved trains the same weights.

    Returns:
        utterances: of ids, images and lengths of both splits.
        embeddings: :func:`probe_sums` of the image embeddings of both splits, and of the caption embeddings if they
            supervise training.
        vocabulary: of the subword ids and their counts; "" for a head without keywords.
    """
    spoken = [(data.train, data.train_speech), (data.dev, data.dev_speech)]
    rows = [split.images for split, _ in spoken]
    if config.train.supervision == "text" and data.train.texts is not None:
        rows.append(data.train.texts)
    words = model.vocabulary
    subwords = [] if words is None else [f"{number}\t{count}" for number, count in zip(words.ids, words.counts)]
    return {
        "utterances": lines_fingerprint(line for part in spoken for line in _utterance_lines(*part)),
        "embeddings": [probe_sums(matrix) for matrix in rows],
        "vocabulary": lines_fingerprint(subwords) if subwords else "",
    }


def probe_sums(matrix: np.ndarray) -> list[float]:
    """Return weighted sums of all values of embeddings [N, D], one for each of four patterns of weights.

    They are equal up to rounding if the embeddings are. CLIP rounds differently with another number of threads. A
    changed, missing or moved row changes them.
    """
    sums, columns = np.zeros(_PROBES), np.cos(np.outer(np.arange(matrix.shape[1]) + 1.0, _frequencies(2)))
    for start in range(0, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK].astype(np.float64)
        rows = np.cos(np.outer(np.arange(start, start + len(block)) + 1.0, _frequencies(3)))
        sums += (rows * (block @ columns)).sum(axis=0)
        release(matrix)
    return [round(float(value), 6) for value in sums]


def _frequencies(base: int) -> np.ndarray:
    """Return frequencies without common multiples: the weights of two rows or columns are never all equal."""
    return np.sqrt(base) * np.arange(1, _PROBES + 1)


def _same_input(before: Any, now: Any) -> bool:
    """Return whether an input of training is unchanged. Sums of embeddings may differ by rounding."""
    if not isinstance(before, list) or not isinstance(now, list):
        return bool(before == now)
    first, second = np.array(before, dtype=float), np.array(now, dtype=float)
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=0, atol=_PROBE_ROUNDING))


def _utterance_lines(split: Split, speech: SpeechSource) -> Iterator[str]:
    """Yield id, image and length of every utterance, many lines at a time."""
    for start in range(0, len(split.ids), _BLOCK):
        part = slice(start, start + _BLOCK)
        images = split.image_ids.take(split.utterance_image[part])
        rows = zip(split.ids[part], images, speech.lengths[part].tolist(), strict=True)
        yield "\n".join([f"{item}\t{image}\t{length:.2f}" for item, image, length in rows])


def changed_inputs(
    saved: Config, origin: dict[str, Any], wanted: Config, wanted_origin: dict[str, Any], model: SpeechNetwork
) -> list[str]:
    """Return the names of all inputs that change the weights and differ between a saved run and the wanted one.

    The number of processes is not an input: it changes dropout masks and rounding, not what is learned.

    Args:
        saved, wanted: the two configurations.
        origin, wanted_origin: the two provenances, with "seed", "encoders" and "inputs" (:func:`data_fingerprints`).
        model: the network of the wanted run.
    """
    before, now = frozen_weights(origin.get("encoders", {})), frozen_weights(wanted_origin.get("encoders", {}), model)
    known = {part for part in before.keys() & now.keys() if before[part] and now[part]}
    first, second = _values(saved), _values(wanted)
    found = [
        key for key in first
        if not key.startswith(WITHOUT_EFFECT) and _PATHS.get(key) not in known and first[key] != second[key]
    ]  # fmt: skip
    found += [part for part in sorted(known) if before[part] != now[part]]
    if origin.get("seed") != wanted_origin.get("seed"):
        found.append("seed")
    read = origin.get("inputs", {})
    return found + [name for name, value in wanted_origin["inputs"].items() if not _same_input(read.get(name), value)]


def update_settings(folder: Path, config: Config) -> None:
    """Write settings of scoring and paths of encoders into a checkpoint of the same run. Scoring reads them from there.

    All other settings stay as the weights were trained with. Nothing is written if nothing differs.
    """
    saved = load([folder / SETTINGS])
    first, second = _values(saved), _values(config)
    if all(first[key] == second[key] for key in first if key.startswith("eval.") or key in _PATHS):
        return
    speech_encoder = dataclasses.replace(saved.model.speech_encoder, path=config.model.speech_encoder.path)
    clip = dataclasses.replace(saved.model.clip, path=config.model.clip.path)
    model = dataclasses.replace(saved.model, speech_encoder=speech_encoder, clip=clip)
    merged = dataclasses.replace(saved, model=model, eval=config.eval)

    def write(part: Path) -> None:
        for path in folder.iterdir():
            if path.is_file() and path.name not in (SETTINGS, SUMS):
                shutil.copy2(path, part / path.name)
        save(merged, part / SETTINGS)

    replace_folder(folder, write, keep=True)


def _values(config: Config) -> dict[str, Any]:
    """Return the value of every dotted key."""
    content, values = to_dict(config), {}
    for key in known_keys():
        node: Any = content
        for part in key.split("."):
            node = node[part]
        values[key] = node
    return values
