"""Published checkpoints of FaST-VGS and FaST-VGS+ (Peng and Harwath 2022): ``best_bundle.pth`` next to ``args.pkl``.

No code of a file is executed. Every tensor is used, known to be unused by the model, or an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.config import FastVgsConfig, HeadConfig, ModelConfig, SpeechEncoderConfig
from speechclip.convert.hubert import HEAD_WIDTH
from speechclip.convert.torchfile import RECORDS, read_torch_file
from speechclip.convert.unpickle import Unpickler

ARGUMENTS = "args.pkl"
_PARTS = ("dual_encoder", "cross_encoder")
_USED_LAYER = 8  # of wav2vec 2.0, if args.pkl is missing
_TOWER = "conv1_trm1_trm3."
_SPEECH = "head.speech."
#: Tensors that retrieval and hidden states do not read: the parts of the pretraining, and a projection whose result the
#: authors' code overwrites.
_DEAD = (
    f"{_TOWER}mask_emb", f"{_TOWER}quantizer.", f"{_TOWER}project_q.", f"{_TOWER}final_proj.", f"{_TOWER}target_glu.",
    "audio_cls_token_proj_coarse.",
)  # fmt: skip
#: (published name, our name) of single modules and parameters.
_SINGLE = (
    (f"{_TOWER}cls_token", f"{_SPEECH}transformer.cls"), (f"{_TOWER}layer_norm.", f"{_SPEECH}transformer.input_norm."),
    (f"{_TOWER}post_extract_proj.", f"{_SPEECH}transformer.projection."),
    (f"{_TOWER}encoder.pos_conv.0.weight_g", f"{_SPEECH}transformer.position.parametrizations.weight.original0"),
    (f"{_TOWER}encoder.pos_conv.0.weight_v", f"{_SPEECH}transformer.position.parametrizations.weight.original1"),
    (f"{_TOWER}encoder.pos_conv.0.bias", f"{_SPEECH}transformer.position.bias"),
    (f"{_TOWER}encoder.layer_norm.", f"{_SPEECH}transformer.norm."),
    ("conv2.linear.", f"{_SPEECH}resdavenet.linear."), ("conv2.bn1.", f"{_SPEECH}resdavenet.norm."),
    ("audio_cls_token_proj_pre.", f"{_SPEECH}cls_projection."), ("trm2_proj.", f"{_SPEECH}projection."),
    ("visn_fc.visn_fc.", "head.image.features."), ("visn_fc.visn_layer_norm.", "head.image.feature_norm."),
    ("visn_fc.box_fc.", "head.image.boxes."), ("visn_fc.box_layer_norm.", "head.image.box_norm."),
    ("visual_cls_token_proj_coarse.", "head.image.projection."), ("visual_cls_token", "head.image.cls"),
    ("fc.", "head.scorer.score."),
)  # fmt: skip
#: Patterns of repeated modules, and the beginning of our name.
_REPEATED = (
    (rf"{_TOWER}encoder\.layers\.(\d+)\.", f"{_SPEECH}transformer.layers.{{}}.", "wav2vec"),
    (r"conv2\.layer(\d+)\.(\d+)\.", f"{_SPEECH}resdavenet.stages.{{}}.{{}}.", "residual"),
    (r"trm2\.", f"{_SPEECH}layer.", "bert"), (r"trm\.(\d+)\.", "head.image.layers.{}.", "bert"),
    (r"xtrm\.(\d+)\.", "head.scorer.layers.{}.", "cross"),
)  # fmt: skip
#: Names inside a repeated module.
_INSIDE = {
    "wav2vec": (
        ("self_attn.q_proj.", "attention.query."), ("self_attn.k_proj.", "attention.key."),
        ("self_attn.v_proj.", "attention.value."), ("self_attn.out_proj.", "output.dense."),
        ("self_attn_layer_norm.", "output.norm."), ("fc1.", "feed_forward.dense."),
        ("fc2.", "feed_forward.output.dense."), ("final_layer_norm.", "feed_forward.output.norm."),
    ),
    "residual": (("conv", "conv"), ("bn", "norm"), ("downsample.", "shortcut.")),
    "bert": (
        ("attention.self.", "attention."), ("attention.output.dense.", "output.dense."),
        ("attention.output.LayerNorm.", "output.norm."), ("intermediate.dense.", "feed_forward.dense."),
        ("output.dense.", "feed_forward.output.dense."), ("output.LayerNorm.", "feed_forward.output.norm."),
    ),
    "cross": (
        ("visual_attention.att.", "cross."), ("visual_attention.output.dense.", "cross_output.dense."),
        ("visual_attention.output.LayerNorm.", "cross_output.norm."), ("audio_self_att.", "speech_self."),
        ("visn_self_att.", "image_self."), ("audio_inter.dense.", "speech_forward.dense."),
        ("audio_output.dense.", "speech_forward.output.dense."),
        ("audio_output.LayerNorm.", "speech_forward.output.norm."), ("visn_inter.dense.", "image_forward.dense."),
        ("visn_output.dense.", "image_forward.output.dense."),
        ("visn_output.LayerNorm.", "image_forward.output.norm."),
    ),
}  # fmt: skip
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers, not parameters


@dataclass(frozen=True)
class FastVgsCheckpoint:
    """The content of a published checkpoint. Every tensor of the file is in one of these fields.

    Attributes:
        source: the file.
        config: the model's configuration, without paths.
        state: the trained tensors under this project's names.
        convolutions: the waveform convolutions under fairseq's names, without "feature_extractor.".
        dropped: names of tensors that no output depends on.
        parameters: number of parameters in the file, dropped ones included.
        facts: facts about the training, for the provenance.
    """

    source: str
    config: ModelConfig
    state: dict[str, Tensor]
    convolutions: dict[str, Tensor]
    dropped: tuple[str, ...]
    parameters: int
    facts: dict[str, Any]


def is_fast_vgs(content: Any) -> bool:
    """Return whether the content of a torch file is a bundle of FaST-VGS."""
    return isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in _PARTS)


def read_fast_vgs(path: str | Path, content: Any = None) -> FastVgsCheckpoint:
    """Read a bundle and the args.pkl next to it.

    Args:
        path: the bundle.
        content: of the bundle, if it was read.

    Raises:
        UserError: a file is damaged or another one, or a tensor is missing or unknown. The message names it.
    """
    content = read_torch_file(path) if content is None else content
    if not is_fast_vgs(content):
        raise UserError(
            f"{path}: not a checkpoint of FaST-VGS: dual_encoder or cross_encoder is missing."
            " Copy or download the file again."
        )
    tensors: dict[str, Tensor] = {}
    for part in _PARTS:
        for name, value in content[part].items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise UserError(
                    f"{path}: {part}: {name} is a {type(value).__name__}, not a tensor."
                    " Copy or download the file again."
                )
            tensors[name.removeprefix("module.")] = value
    arguments = read_arguments(Path(path).with_name(ARGUMENTS))
    try:
        return convert_fast_vgs(tensors, arguments, str(path))
    except KeyError as error:
        raise UserError(f"{path}: the tensor {error.args[0]} is missing. Copy the checkpoint again.") from error


def read_arguments(path: Path) -> dict[str, Any]:
    """Return the settings in an args.pkl; empty if the file is missing.

    Raises:
        UserError: the file is damaged, or holds something else than a Namespace.
    """
    if not path.is_file():
        return {}

    def refuse(_: Any) -> Any:
        raise UserError(f"{path}: holds tensors, not settings. Copy or download the file again.")

    reader = Unpickler(str(path), functions={}, records=RECORDS, storage=refuse)
    with path.open("rb") as stream:
        found = reader.load(stream)
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: a {type(found).__name__}, not the settings of a training. Copy or download the file again."
        )
    return {str(key): value for key, value in found.items()}


def convert_fast_vgs(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], source: str) -> FastVgsCheckpoint:
    """Return the settings and tensors of a model.

    Args:
        tensors: of both encoders, under the published names.
        arguments: of args.pkl; may be empty.
        source: the file, for errors.

    Raises:
        UserError: an unknown tensor.
        KeyError: a missing tensor.
    """
    state: dict[str, Tensor] = {}
    convolutions: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name, value in tensors.items():
        if name.startswith(f"{_TOWER}feature_extractor."):
            convolutions[name.removeprefix(f"{_TOWER}feature_extractor.")] = value
        elif name.startswith(_DEAD):
            dropped.append(name)
        else:
            new = _renamed(name)
            if new is None or new in state:
                raise UserError(f"{source}: unknown tensor {name}. Copy or download the file again.")
            state[new] = _reshaped(new, value)
    config = _config(state, arguments)
    state |= {"weighted_sum.weights": torch.zeros(1), "loss.log_scale": torch.tensor(math.log(1 / 0.07))}
    count = sum(value.numel() for name, value in tensors.items() if not name.endswith(_STATISTICS))
    facts = {name: arguments[name] for name in ("n_epochs", "batch_size", "lr", "seed") if name in arguments}
    return FastVgsCheckpoint(source, config, state, convolutions, tuple(dropped), count, facts)


def _renamed(name: str) -> str | None:
    """Return our name of a published tensor; None if it is unknown."""
    for pattern, new, kind in _REPEATED:
        if found := re.match(pattern, name):
            numbers = [int(number) for number in found.groups()]
            if kind == "residual":
                numbers[0] -= 1
            rest = name[found.end() :]
            for old, inside in _INSIDE[kind]:
                if rest.startswith(old):
                    return new.format(*numbers) + inside + rest[len(old) :]
            return None
    for old, new in _SINGLE:
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return None


def _reshaped(name: str, value: Tensor) -> Tensor:
    """Return a tensor in our shape: [CLS] vectors [d], and convolutions over time alone."""
    if name.endswith(".cls"):
        return value.reshape(-1)
    if value.ndim == 4 and value.shape[2] == 1:
        return value[:, :, 0]
    return value


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of layers below a prefix."""
    return len(set(_numbers(state, prefix)))


def _numbers(state: Mapping[str, Tensor], prefix: str) -> Iterator[str]:
    for name in state:
        if name.startswith(prefix):
            yield name[len(prefix) :].partition(".")[0]


def _config(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration. Sizes follow from the tensors, attention heads from args.pkl or the published width."""
    tower = f"{_SPEECH}transformer."
    position, dim = state[f"{tower}position.parametrizations.weight.original1"], len(state[f"{_SPEECH}projection.bias"])
    layers = _layers(state, f"{tower}layers.")
    stages = _layers(state, f"{_SPEECH}resdavenet.stages.")
    widths = [len(state[f"{_SPEECH}resdavenet.linear.bias"])]
    widths += [len(state[f"{_SPEECH}resdavenet.stages.{at}.1.norm2.bias"]) for at in range(stages)]
    heads = max(1, dim // HEAD_WIDTH)
    used = _integer(arguments, "layer_use", min(layers, _USED_LAYER) - 1) + 1
    settings = FastVgsConfig(
        dim=dim, heads=_integer(arguments, "num_attention_heads", heads),
        feed_forward=len(state[f"{_SPEECH}layer.feed_forward.dense.bias"]),
        speech_layers=layers, speech_layer=min(used, layers),
        speech_heads=_integer(arguments, "encoder_attention_heads", heads),
        speech_feed_forward=len(state[f"{tower}layers.0.feed_forward.dense.bias"]),
        position_kernel=int(position.shape[2]), position_groups=dim // int(position.shape[1]), widths=widths,
        image_layers=_layers(state, "head.image.layers."), cross_layers=_layers(state, "head.scorer.layers."),
        region_features=int(state["head.image.features.weight"].shape[1]), regions="butd",
    )  # fmt: skip
    encoder = SpeechEncoderConfig(
        normalize=True, part="convolutions", train_seconds=_seconds(arguments, "audio_feat_len", 8.0),
        eval_seconds=_seconds(arguments, "val_audio_feat_len", 10.0),
    )  # fmt: skip
    return ModelConfig(speech_encoder=encoder, head=HeadConfig(name="fast_vgs", fast_vgs=settings))


def _integer(arguments: Mapping[str, Any], name: str, default: int) -> int:
    value = arguments.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _seconds(arguments: Mapping[str, Any], name: str, default: float) -> float:
    value = arguments.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else default
