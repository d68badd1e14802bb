"""Tensors of the published heads under this project's names (Shih et al. 2022; Wang et al. 2024).

A layout is a function ``convert(tensors) -> (ModelConfig, state dict)``. It gets the whole state dict of a checkpoint
and takes out what it uses (``tensors.pop``); what is then left and is no part of a frozen encoder is an error, so
nothing is dropped in silence. The state dict it returns is what :meth:`speechclip.model.SpeechCLIP.trained_state` has.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable

import torch
from torch import Tensor

from speechclip.config import HeadConfig, LossConfig, ModelConfig, SpeechEncoderConfig
from speechclip.errors import UserError

Converted = tuple[ModelConfig, dict[str, Tensor]]
Layout = Callable[[dict[str, Tensor]], Converted]

TEMPERATURE = 0.07  # where it is not learned
#: Only SpeechCLIP+ has these below ``cascaded_branch``.
_PLUS = ("parallel_cls", "cascaded_cls", "parallel_proj", "downsampling", "cif")
_PLUS_MODULE = "speechclip.published.plus_layout"


def layout_of(tensors: dict[str, Tensor], source: str) -> Layout:
    """The layout of a published checkpoint, by the names of its tensors.

    Raises:
        UserError: no head of SpeechCLIP, or one of SpeechCLIP+ in a version without those heads.
    """
    heads = {branch for branch in ("parallel", "cascaded") if _has(tensors, f"{branch}_branch.")}
    if any(_has(tensors, f"cascaded_branch.{name}") for name in _PLUS) or len(heads) == 2:
        if importlib.util.find_spec(_PLUS_MODULE) is None:
            raise UserError(
                f"{source}: a checkpoint of SpeechCLIP+ (Wang et al. 2024), whose heads this version does not have"
            )
        plus: Layout = importlib.import_module(_PLUS_MODULE).convert
        return plus
    if heads == {"parallel"}:
        return convert_parallel
    if heads == {"cascaded"}:
        return convert_cascaded
    raise UserError(f"{source}: no checkpoint of SpeechCLIP: neither parallel_branch nor cascaded_branch in it")


def _has(tensors: dict[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def is_large(tensors: dict[str, Tensor]) -> bool:
    """Whether the checkpoint's HuBERT is of the Large type: layer norms in the convolutions, normalised input."""
    return "audio_encoder.encoder.feature_extractor.conv_layers.0.2.1.weight" in tensors


def take(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Take a tensor out. Raises UserError where there is none."""
    if name not in tensors:
        raise UserError(f"no tensor {name}")
    return tensors.pop(name)


def take_linear(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Weight and bias of a layer, renamed."""
    return {f"{new}.{part}": take(tensors, f"{old}.{part}") for part in ("weight", "bias")}


def take_attention(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """An ``nn.MultiheadAttention``, renamed."""
    inside = {f"{new}.{part}": take(tensors, f"{old}.{part}") for part in ("in_proj_weight", "in_proj_bias")}
    return inside | take_linear(tensors, f"{old}.out_proj", f"{new}.out_proj")


def take_cls(tensors: dict[str, Tensor], name: str) -> Tensor:
    """[CLS] vectors, published [1, Q, d], as [Q, d]."""
    cls = take(tensors, name)
    if cls.ndim != 3 or cls.shape[0] != 1:
        raise UserError(f"{name} is {list(cls.shape)}, not [1, vectors, width]")
    return cls[0]


def take_mix_and_loss(tensors: dict[str, Tensor]) -> tuple[LossConfig, dict[str, Tensor]]:
    """Layer mix and temperature, which every published head has alike."""
    state = {"layer_mix.weights": take(tensors, "audio_encoder.weightedsum_layer.weights").reshape(-1)}
    learned = "criterion.temperature" in tensors  # log(1 / tau)
    scale = tensors.pop("criterion.temperature").reshape(()) if learned else torch.tensor(math.log(1 / TEMPERATURE))
    state["loss.log_scale"] = scale.float()
    return LossConfig(temperature=TEMPERATURE, learn_temperature=learned), state


def take_batch_norm(tensors: dict[str, Tensor], old: str, new: str, keywords: int) -> dict[str, Tensor]:
    """BatchNorm of K keywords, published with the dimension major, (d, k) -> d * K + k; here k * D + d."""
    state = {f"{new}.num_batches_tracked": take(tensors, f"{old}.num_batches_tracked")}
    for part in ("weight", "bias", "running_mean", "running_var"):
        flat = take(tensors, f"{old}.{part}")
        if flat.ndim != 1 or len(flat) % keywords:
            raise UserError(f"{old}.{part} is {list(flat.shape)}: not a multiple of {keywords} keywords")
        state[f"{new}.{part}"] = flat.reshape(-1, keywords).T.reshape(-1).contiguous()
    return state


def take_projection(tensors: dict[str, Tensor], old: str) -> tuple[int, dict[str, Tensor]]:
    """The keyword projection: number of its linear layers, one or two as the keys say, and its tensors."""
    if f"{old}.weight" in tensors:
        return 1, take_linear(tensors, old, "head.projection")
    both = [take_linear(tensors, f"{old}.sequential.{i}", f"head.projection.{i}") for i in (0, 3)]
    return 2, both[0] | both[1]


def _model(tensors: dict[str, Tensor], head: HeadConfig, loss: LossConfig) -> ModelConfig:
    large = is_large(tensors)
    return ModelConfig(speech_encoder=SpeechEncoderConfig(normalize=large, state_norm=large), head=head, loss=loss)


def convert_parallel(tensors: dict[str, Tensor]) -> Converted:
    """The parallel head: a transformer layer of 8 heads over [CLS] and frames, one more LayerNorm, a projection."""
    old, layer = "parallel_branch", "parallel_branch.self_att.model.layers.0"
    loss, state = take_mix_and_loss(tensors)
    state["head.cls"] = take_cls(tensors, f"{old}.cls")
    state |= take_attention(tensors, f"{layer}.self_attn", "head.attention.attention")
    state |= take_linear(tensors, f"{layer}.norm1", "head.norm_attention")
    state |= take_linear(tensors, f"{layer}.linear1", "head.feed_forward.0")
    state |= take_linear(tensors, f"{layer}.linear2", "head.feed_forward.3")
    state |= take_linear(tensors, f"{layer}.norm2", "head.norm_feed_forward")
    state |= take_linear(tensors, f"{old}.self_att.model.norm", "head.norm")
    state |= take_linear(tensors, f"{old}.linear_proj", "head.projection")
    return _model(tensors, HeadConfig(name="parallel", attention_heads=8), loss), state


def convert_cascaded(tensors: dict[str, Tensor]) -> Converted:
    """The cascaded head: one attention of 1 head, LayerNorm, projection, keyword BatchNorm."""
    old = "cascaded_branch"
    loss, state = take_mix_and_loss(tensors)
    cls = state["head.cls"] = take_cls(tensors, f"{old}.cls")
    state |= take_attention(tensors, f"{old}.self_att.multihead_attn_layer", "head.attention.attention")
    state |= take_linear(tensors, f"{old}.self_att.attentionBlock_Norm", "head.norm")
    layers, projection = take_projection(tensors, f"{old}.linear_proj")
    state |= projection
    state |= take_batch_norm(tensors, f"{old}.bn_layer.bn_layer", "head.batch_norm", len(cls))
    head = HeadConfig(
        name="cascaded",
        attention_heads=1,
        keywords=len(cls),
        projection_layers=2 if layers == 2 else 1,
        quantizer_temperature=round(float(take(tensors, f"{old}.vector_quantizer.curr_temp").reshape(())), 6),
    )
    return _model(tensors, head, loss), state
