"""Tensors of the published heads under this project's names (Shih et al. 2022; Wang et al. 2024).

A layout is a function ``convert(tensors) -> (ModelConfig, state dict)``. It gets the whole state dict of a checkpoint
and takes out what it uses (``tensors.pop``); what is then left and is no part of a frozen encoder is an error, so
nothing is dropped in silence. The state dict it returns is what :meth:`speechclip.model.network.SpeechCLIP.trained_state` has.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.config import HeadConfig, LossConfig, ModelConfig, SpeechEncoderConfig
from speechclip.convert.plus_layout import convert_plus
from speechclip.convert.tensors import (
    is_large,
    take_attention,
    take_attention_block,
    take_batch_norm,
    take_cls,
    take_linear,
    take_mix_and_loss,
    take_projection,
    take_temperature,
)

Converted = tuple[ModelConfig, dict[str, Tensor]]
Layout = Callable[[dict[str, Tensor]], Converted]

#: Only SpeechCLIP+ has these below ``cascaded_branch``.
_PLUS = ("parallel_cls", "cascaded_cls", "parallel_proj", "downsampling", "cif")


def layout_of(tensors: dict[str, Tensor], source: str) -> Layout:
    """The layout of a published checkpoint, by the names of its tensors.

    Raises:
        UserError: no head of SpeechCLIP.
    """
    heads = {branch for branch in ("parallel", "cascaded") if _has(tensors, f"{branch}_branch.")}
    if any(_has(tensors, f"cascaded_branch.{name}") for name in _PLUS) or len(heads) == 2:
        return convert_plus
    if heads == {"parallel"}:
        return convert_parallel
    if heads == {"cascaded"}:
        return convert_cascaded
    raise UserError(f"{source}: no checkpoint of SpeechCLIP: neither parallel_branch nor cascaded_branch in it")


def _has(tensors: dict[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


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
    state |= take_attention_block(tensors, old)
    layers, projection = take_projection(tensors, f"{old}.linear_proj", "head.projection")
    state |= projection
    state |= take_batch_norm(tensors, f"{old}.bn_layer.bn_layer", "head.batch_norm", len(cls))
    head = HeadConfig(
        name="cascaded",
        attention_heads=1,
        keywords=len(cls),
        projection_layers=layers,
        quantizer_temperature=take_temperature(tensors, old),
    )
    return _model(tensors, head, loss), state
