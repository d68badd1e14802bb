"""Tensors of the published SpeechCLIP heads under this project's names (Shih et al. 2022).

A layout is a function ``convert(tensors) -> (ModelConfig, state dict)``. It gets the state dict of a checkpoint and
takes out the tensors that it uses. The reader refuses a file with other tensors left, so no tensor is dropped silently.
The result has the names of :meth:`speechclip.model.network.SpeechNetwork.trained_state`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.config import HeadConfig, LossConfig, ModelConfig, SpeechEncoderConfig
from speechclip.convert.plus_layout import convert_plus
from speechclip.convert.tensors import (
    is_large,
    take_attention_block,
    take_batch_norm,
    take_cls,
    take_linear,
    take_mix_and_loss,
    take_projection,
    take_temperature,
    take_transformer_block,
)

Converted = tuple[ModelConfig, dict[str, Tensor]]
Layout = Callable[[dict[str, Tensor]], Converted]

#: Only SpeechCLIP+ has these names below ``cascaded_branch``.
_PLUS = ("parallel_cls", "cascaded_cls", "parallel_proj", "downsampling", "cif")


def layout_of(tensors: dict[str, Tensor], source: str) -> Layout:
    """Return the layout of a published checkpoint. The names of its tensors decide.

    Raises:
        UserError: the tensors hold no head of SpeechCLIP.
    """
    heads = {branch for branch in ("parallel", "cascaded") if _has(tensors, f"{branch}_branch.")}
    if any(_has(tensors, f"cascaded_branch.{name}") for name in _PLUS) or len(heads) == 2:
        return convert_plus
    if heads == {"parallel"}:
        return convert_parallel
    if heads == {"cascaded"}:
        return convert_cascaded
    raise UserError(
        f"{source}: not a checkpoint of SpeechCLIP: it has neither a parallel_branch nor a cascaded_branch."
        " Use a published file."
    )


def _has(tensors: dict[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _model(tensors: dict[str, Tensor], head: HeadConfig, loss: LossConfig) -> ModelConfig:
    large = is_large(tensors)
    return ModelConfig(speech_encoder=SpeechEncoderConfig(normalize=large, state_norm=large), head=head, loss=loss)


def convert_parallel(tensors: dict[str, Tensor]) -> Converted:
    """Convert a parallel head: a transformer layer with 8 attention heads, one more LayerNorm, a projection."""
    old = "parallel_branch"
    loss, state = take_mix_and_loss(tensors)
    state["head.cls"] = take_cls(tensors, f"{old}.cls")
    state |= take_transformer_block(tensors, old)
    state |= take_linear(tensors, f"{old}.linear_proj", "head.projection")
    return _model(tensors, HeadConfig(name="parallel", attention_heads=8), loss), state


def convert_cascaded(tensors: dict[str, Tensor]) -> Converted:
    """Convert a cascaded head: an attention block with 1 attention head, a projection, the keyword BatchNorm."""
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
