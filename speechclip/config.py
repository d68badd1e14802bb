"""The whole configuration schema: frozen dataclasses, filled from YAML layers and dotted overrides, validated.

Later layers win. Every key is read somewhere; unknown keys and wrong types are errors that name the key.
Defaults are the published Base settings (Shih et al. 2022; Wang et al. 2024).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

from speechclip.common.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_MAX_BYTES, _MAX_VALUES = 1 << 20, 10_000  # of a configuration file


@dataclass(frozen=True)
class SpeechEncoderConfig:
    """The frozen speech encoder.

    Attributes:
        path: transformers folder or hub id of a HuBERT, wav2vec 2.0, WavLM, data2vec-audio or Whisper; fairseq's HuBERT
            file; or "s3prl:NAME", "s3prl:NAME:CHECKPOINT" for an upstream of s3prl.
        normalize: zero mean and unit variance for each waveform; null follows the encoder's preprocessor_config.json.
        window_seconds: length Whisper's input is padded to (30 as it was trained; less is faster).
        layers: hidden states to mix, e.g. [0, 6, 12]; null takes all.
        state_norm: LayerNorm without affine parameters over every hidden state before the mix (published Large models).
    """

    path: str = ""
    normalize: Optional[bool] = None
    window_seconds: float = 30.0
    layers: Optional[list[int]] = None
    state_norm: bool = False


@dataclass(frozen=True)
class ClipConfig:
    """The frozen CLIP.

    Attributes:
        path: open_clip folder (open_clip_config.json beside the weights), transformers folder, OpenAI's file, hub id
            "hf-hub:..." or "NAME:PRETRAINED" with PRETRAINED a tag or file. Empty: precomputed
            embeddings take its place (parallel head only).
    """

    path: str = ""


@dataclass(frozen=True)
class CIFConfig:
    """Continuous integrate-and-fire of the heads cascaded_plus and hybrid_plus.

    Attributes:
        frames_per_keyword: the target number of keywords is the number of 20 ms frames divided by this, rounded.
        layers: convolutions that a frame's weight is predicted by.
        width: frames that one of them sees, odd.
        dropout: after each of them, and before the weight itself.
        scaling_steps: in the first training steps the weights are scaled so that the target number fires.
        tail_threshold: in evaluation a rest of at least this fires, too.
        max_keywords: keywords an utterance can have; fewer where the text tower has less room.
    """

    frames_per_keyword: float = 20.0
    layers: int = 1
    width: int = 3
    dropout: float = 0.5
    scaling_steps: int = 5000
    tail_threshold: float = 0.5
    max_keywords: int = 75


@dataclass(frozen=True)
class HeadConfig:
    """The trained head.

    Attributes:
        name: which head.
        attention_heads: heads of its self-attention.
        dropout: dropout of its attention and feed-forward.
        input_dropout: dropout on the mixed speech features.
        keywords: K, the number of keywords of the heads cascaded and hybrid.
        projection_layers: linear layers from the keyword states to the subword width, 1 or 2.
        parallel_layers: linear layers from a hybrid head's parallel [CLS] to the embedding, 1 or 2.
        quantizer_temperature: temperature of the softmax over the vocabulary.
        cif: where a head finds the number of keywords by itself.
    """

    name: str = "parallel"
    attention_heads: int = 8
    dropout: float = 0.1
    input_dropout: float = 0.0
    keywords: int = 8
    projection_layers: Literal[1, 2] = 1
    parallel_layers: Literal[1, 2] = 1
    quantizer_temperature: float = 0.1
    cif: CIFConfig = field(default_factory=CIFConfig)


@dataclass(frozen=True)
class LossConfig:
    """The masked contrastive loss.

    Attributes:
        temperature: tau of logits = cosine / tau, at the start if learned.
        learn_temperature: train log(1 / tau), as published for Large and for SpeechCLIP+ of either size, save COCO's
            Large Hybrid.
        parallel_weight: of a hybrid head's loss on the parallel branch.
        cascaded_weight: of its loss on the branch through keywords.
        quantity_weight: of the difference between the number of keywords and its target (cascaded_plus, hybrid_plus).
    """

    temperature: float = 0.07
    learn_temperature: bool = False
    parallel_weight: float = 1.0
    cascaded_weight: float = 1.0
    quantity_weight: float = 0.25


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines the model. Saved with its weights."""

    speech_encoder: SpeechEncoderConfig = field(default_factory=SpeechEncoderConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True)
class DataConfig:
    """What training reads, and how it is batched.

    Attributes:
        feats: hidden states from the store of stage 2 ("dump") or computed in the training loop ("online").
        store_dtype: precision of the feature store.
        max_seconds: longer utterances are cropped at random, in training only; 0 for no limit.
        batch_size: utterances in a global batch, over all processes.
        eval_batch_size: utterances in an evaluation batch, a process.
        encode_batch_size: utterances that the speech encoder takes at a time while training with feats "online", a
            process; the memory it needs grows with them.
        bucket_batches: batches are cut from this many shuffled batches sorted by length; 1 for no sorting.
        time_masks: spans of frames set to zero in each training utterance.
        time_mask_frames: the longest such span, in frames of 20 ms.
        workers: loader processes; 0 reads in the training process.
    """

    feats: Literal["dump", "online"] = "dump"
    store_dtype: Literal["float16", "float32"] = "float16"
    max_seconds: float = 6.4
    batch_size: int = 256
    eval_batch_size: int = 32
    encode_batch_size: int = 64
    bucket_batches: int = 8
    time_masks: int = 0
    time_mask_frames: int = 20
    workers: int = 0


@dataclass(frozen=True)
class OptimConfig:
    """Adam with linear warm-up and linear decay, by steps.

    Attributes:
        lr: peak learning rate.
        final_lr: learning rate at the last step.
        betas: Adam's decay rates.
        weight_decay: L2 penalty added to the gradient ("adam") or decoupled ("adamw").
        algorithm: which of the two.
        warmup_steps: steps of linear warm-up.
        max_steps: training ends here.
        clip_norm: gradients are scaled down to this global norm; 0 for none.
        ema_decay: evaluate and save an exponential moving average of the weights; 0 for the weights themselves.
    """

    lr: float = 1e-4
    final_lr: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-6
    algorithm: Literal["adam", "adamw"] = "adam"
    warmup_steps: int = 5000
    max_steps: int = 50000
    clip_norm: float = 4.0
    ema_decay: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Attributes:
        precision: Fabric's precision; bf16-mixed and 16-mixed want a GPU.
        eval_interval: steps between dev evaluations, each of which also saves `last`.
        log_interval: steps between lines of the log and points in TensorBoard.
        patience: stop after this many dev evaluations without a better mean R@10; 0 never stops early.
        supervision: what stands on the other side of the loss; "text" is the supervised topline.
        tensorboard_utterances: dev utterances that TensorBoard plays, with their attention and embeddings; 0 for none.
    """

    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    eval_interval: int = 1000
    log_interval: int = 50
    patience: int = 0
    supervision: Literal["image", "text"] = "image"
    tensorboard_utterances: int = 4


@dataclass(frozen=True)
class EvalConfig:
    """Scoring.

    Attributes:
        bootstrap: resamples of the images for the confidence intervals; 0 for none.
        neighbours: subwords written down for each keyword.
        sweep: numbers of neighbours that keyword hit rates are given for.
        span_mass: share of a keyword's attention that its time span holds.
        boundary_tolerance: seconds by which a word boundary may be missed.
        keep_attention: utterances whose keywords' attention is kept for the report; 0 for none.
    """

    bootstrap: int = 1000
    neighbours: int = 5
    sweep: list[int] = field(default_factory=lambda: [1, 3, 5, 10, 20])
    span_mass: float = 0.5
    boundary_tolerance: float = 0.02
    keep_attention: int = 1000


@dataclass(frozen=True)
class Config:
    """A complete configuration: model, data, optimiser, training loop, evaluation."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        head, data, optim = self.model.head, self.data, self.optim
        layers = self.model.speech_encoder.layers
        _check(
            layers is None or (len(layers) > 0 and min(layers) >= 0 and len(set(layers)) == len(layers)),
            "model.speech_encoder.layers", layers, "a list of different numbers from 0 on",
        )  # fmt: skip
        window = self.model.speech_encoder.window_seconds
        _check(window > 0, "model.speech_encoder.window_seconds", window, "positive")
        _check(head.attention_heads >= 1, "model.head.attention_heads", head.attention_heads, "at least 1")
        for key in ("dropout", "input_dropout"):
            _check(0 <= getattr(head, key) < 1, f"model.head.{key}", getattr(head, key), "in [0, 1)")
        _check(head.keywords >= 1, "model.head.keywords", head.keywords, "at least 1")
        _check(
            head.quantizer_temperature > 0, "model.head.quantizer_temperature", head.quantizer_temperature, "positive"
        )
        _check_fire(head.cif)
        _check_loss(self.model.loss)
        for key in ("batch_size", "eval_batch_size", "encode_batch_size", "bucket_batches", "time_mask_frames"):
            _check(getattr(data, key) >= 1, f"data.{key}", getattr(data, key), "at least 1")
        for key in ("time_masks", "workers", "max_seconds"):
            _check(getattr(data, key) >= 0, f"data.{key}", getattr(data, key), "not negative")
        _check(all(0 <= beta < 1 for beta in optim.betas), "optim.betas", optim.betas, "in [0, 1)")
        _check(optim.lr > 0, "optim.lr", optim.lr, "positive")
        _check(optim.max_steps >= 1, "optim.max_steps", optim.max_steps, "at least 1")
        _check(
            0 <= optim.warmup_steps <= optim.max_steps, "optim.warmup_steps", optim.warmup_steps, "in [0, max_steps]"
        )
        for key in ("final_lr", "weight_decay", "clip_norm"):
            _check(getattr(optim, key) >= 0, f"optim.{key}", getattr(optim, key), "not negative")
        _check(0 <= optim.ema_decay < 1, "optim.ema_decay", optim.ema_decay, "in [0, 1)")
        for key in ("eval_interval", "log_interval"):
            _check(getattr(self.train, key) >= 1, f"train.{key}", getattr(self.train, key), "at least 1")
        for key in ("patience", "tensorboard_utterances"):
            _check(getattr(self.train, key) >= 0, f"train.{key}", getattr(self.train, key), "not negative")
        _check(self.eval.neighbours >= 1, "eval.neighbours", self.eval.neighbours, "at least 1")
        for key in ("bootstrap", "keep_attention"):
            _check(getattr(self.eval, key) >= 0, f"eval.{key}", getattr(self.eval, key), "not negative")
        _check(min(self.eval.sweep, default=1) >= 1, "eval.sweep", self.eval.sweep, "a list of numbers from 1 on")
        _check(0 < self.eval.span_mass <= 1, "eval.span_mass", self.eval.span_mass, "in (0, 1]")
        tolerance = self.eval.boundary_tolerance
        _check(tolerance >= 0, "eval.boundary_tolerance", tolerance, "not negative")


def _check_fire(cif: CIFConfig) -> None:
    _check(cif.frames_per_keyword > 0, "model.head.cif.frames_per_keyword", cif.frames_per_keyword, "positive")
    _check(cif.layers >= 1, "model.head.cif.layers", cif.layers, "at least 1")
    _check(cif.width >= 1 and cif.width % 2 == 1, "model.head.cif.width", cif.width, "odd")
    _check(0 <= cif.dropout < 1, "model.head.cif.dropout", cif.dropout, "in [0, 1)")
    _check(cif.scaling_steps >= 0, "model.head.cif.scaling_steps", cif.scaling_steps, "not negative")
    _check(0 < cif.tail_threshold <= 1, "model.head.cif.tail_threshold", cif.tail_threshold, "in (0, 1]")
    _check(cif.max_keywords >= 1, "model.head.cif.max_keywords", cif.max_keywords, "at least 1")


def _check_loss(loss: LossConfig) -> None:
    _check(loss.temperature > 0, "model.loss.temperature", loss.temperature, "positive")
    for key in ("parallel_weight", "cascaded_weight", "quantity_weight"):
        _check(getattr(loss, key) >= 0, f"model.loss.{key}", getattr(loss, key), "not negative")


def _check(holds: bool, key: str, value: object, wanted: str) -> None:
    if not holds:
        raise UserError(f"{key}: {value} is not {wanted}")


def known_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, in order."""
    keys: list[str] = []
    defaults = cls()
    for item in dataclasses.fields(cls):
        value = getattr(defaults, item.name)
        if dataclasses.is_dataclass(value):
            keys += known_keys(type(value), f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def build_parser(prog: str, description: str) -> ArgumentParser:
    """A parser of a stage script: repeated ``--config FILE`` layers, then dotted overrides, ``--help`` generated."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, default_env=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML layer; repeat it, later ones win")
    parser.add_class_arguments(Config, None, fail_untyped=True)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str] | None = None) -> tuple[Config, Any]:
    """Parse a command line into (configuration, namespace of the script's own options).

    Raises:
        UserError: an unknown key or option, a value of a wrong type or range, a missing file; one line, with the key.
    """
    from jsonargparse import ArgumentError

    words = list(sys.argv[1:] if argv is None else argv)
    for flag, following in zip(words, [*words[1:], ""]):
        name, _, value = flag.partition("=")
        if name == "--config":
            _check_layer(Path(value or following))
    try:
        parsed = parser.parse_args(words)
        built = parser.instantiate_classes(parsed)
    except (ArgumentError, TypeError) as error:
        raise UserError(_explain(str(error))) from error
    names = [item.name for item in dataclasses.fields(Config)]
    for name in names:
        _check_null(built[name], name)
    config = Config(**{name: built[name] for name in names})
    for name in (*names, "config"):
        built.pop(name, None)
    return config, built


def _check_null(node: Any, key: str) -> None:
    """UserError for a null where the schema does not know one: jsonargparse takes it for any value."""
    if node is None:
        raise UserError(f"{key}: null is no value of it")
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value) or (value is None and not str(item.type).startswith("Optional")):
            _check_null(value, f"{key}.{item.name}")


def _check_layer(path: Path) -> None:
    """Reject a YAML layer that is missing, no mapping, or holds an unknown key, naming the file."""
    import yaml

    try:
        if path.is_file() and path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: larger than a configuration can be ({_MAX_BYTES} bytes)")
        layer = yaml.safe_load(path.read_text(encoding="utf-8"))
        if _size(layer, {}) > _MAX_VALUES:
            raise UserError(f"{path}: stands for more than {_MAX_VALUES} values")
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a configuration") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (ValueError, yaml.YAMLError, OSError) as error:  # ValueError: no UTF-8, an impossible date
        raise UserError(f"{path}: not a YAML file: {error}") from error
    if layer is None:
        raise UserError(f"{path}: an empty configuration")
    if not isinstance(layer, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, not {type(layer).__name__}")
    known = known_keys()

    def walk(node: dict[Any, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and any(item.startswith(f"{key}.") for item in known):
                walk(value, f"{key}.")
            elif key not in known:
                raise UserError(f"{path}: {_unknown(key)}")

    walk(layer, "")


def _size(node: Any, known: dict[int, int]) -> int:
    """Values that a YAML node stands for: one of a few lines may name another many times over, and so on."""
    if not isinstance(node, (dict, list)):
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES  # while it is at work: a node within itself has no end
        parts = [*node, *node.values()] if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _unknown(key: str) -> str:
    known = known_keys()
    same_leaf = [item for item in known if item.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = (same_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.5))[:1]
    return f"unknown configuration key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """A configuration from YAML layers and ``--key value`` overrides, as a library call.

    Raises:
        UserError: as :func:`parse`.
    """
    argv = [part for path in paths for part in ("--config", str(path))]
    return parse(build_parser("config", ""), [*argv, *overrides])[0]


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain containers, for YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    plain_dict: dict[str, Any] = plain(dataclasses.asdict(config))
    return plain_dict


def save(config: Config, path: str | Path) -> None:
    """Write a configuration as YAML that :func:`load` reads back."""
    import yaml

    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def _explain(message: str) -> str:
    """jsonargparse's message on one line; an unknown option is answered with the nearest key."""
    line = " ".join(message.split())
    unknown = re.match(r"unrecognized arguments: --([\w.-]+)", line)
    return _unknown(unknown.group(1)) if unknown else line.replace("Parser key ", "")


# -- published settings ----------------------------------------------------------------------------------------------

PUBLISHED_MODELS = ("base", "large")
PUBLISHED_HEADS = ("parallel", "cascaded", "hybrid", "cascaded_plus", "hybrid_plus")

_INSTALLED = Path(__file__).resolve().parent / "conf"  # of a wheel: see setup.py
_CHECKOUT = Path(__file__).resolve().parents[1] / "egs"


def published_layers(model: str, head: str, corpus: str = "") -> list[Path]:
    """The YAML layers of a published setting, later ones win, as ``run.sh --model --head`` of a recipe takes them.

    Args:
        model: base or large. head: parallel, cascaded, hybrid, cascaded_plus or hybrid_plus.
        corpus: flickr8k or spokencoco, where a setting was published for one alone; empty for none.
    Raises:
        UserError: a model, head or corpus that there is not, naming those there are.
    """
    folders = _folders(corpus)
    for kind, name, known in (("model", model, PUBLISHED_MODELS), ("head", head, PUBLISHED_HEADS)):
        if name not in known:
            raise UserError(f"no published {kind} {name!r} (there are: {', '.join(known)})")
    files = [folder / f"{name}.yaml" for folder in folders for name in (model, head, f"{model}_{head}")]
    return [file for file in files if file.is_file()]


def published_config(model: str, head: str, corpus: str = "") -> Config:
    """The published configuration of a model and a head (Shih et al. 2022; Wang et al. 2024). See :func:`published_layers`."""
    return load(published_layers(model, head, corpus))


def _folders(corpus: str) -> list[Path]:
    """The folder of the shared layers, and that of the corpus."""
    shared = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT / "conf"
    if not corpus:
        return [shared]
    own = _INSTALLED / corpus if _INSTALLED.is_dir() else _CHECKOUT / corpus / "conf"
    if not own.is_dir():
        raise UserError(f"no published settings for the corpus {corpus!r}")
    return [shared, own]
