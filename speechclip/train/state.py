"""What a run needs beside its weights to go on exactly where it stopped, and whether it may."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechclip.checkpoint.folder import read_weights
from speechclip.common.errors import UserError
from speechclip.config import Config, known_keys, to_dict
from speechclip.model.network import SpeechNetwork

TENSORS, COUNTERS = "training_state.safetensors", "training_state.json"


@dataclass
class Progress:
    """Counters of a run. There is no random state: every step seeds its own randomness from (seed, step, rank).

    step: updates done. best: highest dev mean R@10. best_step: when. stale: evaluations since. seconds: spent training.
    finished: reached the last step or ran out of patience.
    """

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    finished: bool = False

    def scored(self, score: float, max_steps: int, patience: int) -> bool:
        """Take in the dev score at :attr:`step`; whether it is the best one yet. patience: 0 for any."""
        better = score > self.best
        if better:
            self.best, self.best_step, self.stale = score, self.step, 0
        else:
            self.stale += 1
        self.finished = self.step >= max_steps or bool(patience and self.stale >= patience)
        return better


class EmaWeights:
    """An exponential moving average of the trained parameters; statistics (BatchNorm) are taken as they are.

    Args:
        model: whose parameters are followed. decay: d of average = d * average + (1 - d) * parameter; early on it is
            (1 + step) / (10 + step) where that is less, so that the start is soon forgotten.
    """

    def __init__(self, model: SpeechNetwork, decay: float) -> None:
        self.decay = decay
        self.parameters = model.trained_parameters()
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the parameters after update number ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def copy_parameters(self) -> None:
        """Start again from the parameters as they are now."""
        for average, parameter in zip(self.average, self.parameters):
            average.copy_(parameter.detach())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average inside the block."""
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


def save_state(folder: Path, progress: Progress, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor]) -> None:
    """Write counters, optimiser state and the unaveraged ``weights`` into ``folder``."""
    from safetensors.torch import save_file

    tensors = {f"weights.{name}": value.detach().cpu().contiguous() for name, value in weights.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    # shared memory between entries is refused by safetensors: clone
    save_file({name: value.clone() for name, value in tensors.items()}, folder / TENSORS)
    (folder / COUNTERS).write_text(json.dumps(dataclasses.asdict(progress)) + "\n", encoding="utf-8")


def read_progress(folder: Path) -> Progress:
    """Counters that :func:`save_state` wrote. Raises UserError where they are damaged."""
    try:
        return Progress(**json.loads((folder / COUNTERS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / COUNTERS}: missing or damaged; remove the folder to train anew") from error


def restore_state(folder: Path, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Load the optimiser's state into it and return the unaveraged weights.

    Raises UserError where the file is damaged.
    """
    weights: dict[str, Tensor] = {}
    states: dict[int, dict[str, Any]] = {}
    for name, value in read_weights(folder / TENSORS).items():
        kind, _, rest = name.partition(".")
        if kind == "weights":
            weights[rest] = value
        else:
            index, _, key = rest.partition(".")
            states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return weights


def weights_of(origin: dict[str, Any]) -> dict[str, Any]:
    """Fingerprints of the frozen encoders that a run's provenance names."""
    return {part: facts.get("weights") for part, facts in origin.get("encoders", {}).items() if facts.get("weights")}


# what changes how a run is told, scored or fed, but not what it learns
_IMMATERIAL = ("eval.", "data.workers", "data.eval_batch_size", "train.log_interval", "train.tensorboard_utterances")


def differences(saved: Config, wanted: Config) -> list[str]:
    """Dotted keys in which two configurations differ, as far as they change what is learnt."""

    def value(config: Config, key: str) -> Any:
        node: Any = to_dict(config)
        for part in key.split("."):
            node = node[part]
        return node

    return [key for key in known_keys() if not key.startswith(_IMMATERIAL) and value(saved, key) != value(wanted, key)]
