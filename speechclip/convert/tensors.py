"""Functions that take tensors out of a published state dict and rename them. All layouts share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.config import LossConfig

TEMPERATURE = 0.07  # of a model whose temperature was not trained


def is_large(tensors: dict[str, Tensor]) -> bool:
    """Return whether the HuBERT is Large: LayerNorms in its convolutions, normalised input."""
    return "audio_encoder.encoder.feature_extractor.conv_layers.0.2.1.weight" in tensors


def take(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Take a tensor out.

    Raises:
        UserError: the tensor is missing.
    """
    if name not in tensors:
        raise UserError(f"the tensor {name} is missing")
    return tensors.pop(name)


def take_linear(
    tensors: dict[str, Tensor], old: str, new: str, parts: Sequence[str] = ("weight", "bias")
) -> dict[str, Tensor]:
    """Take out the weight and bias of a layer, or other parts of it."""
    return {f"{new}.{part}": take(tensors, f"{old}.{part}") for part in parts}


def take_attention(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Take out an ``nn.MultiheadAttention``."""
    inside = take_linear(tensors, old, new, ("in_proj_weight", "in_proj_bias"))
    return inside | take_linear(tensors, f"{old}.out_proj", f"{new}.out_proj")


def take_cls(tensors: dict[str, Tensor], name: str, count: int | None = None) -> Tensor:
    """Take out [CLS] vectors, published as [1, Q, d], and return them as [Q, d].

    Args:
        tensors: the state dict.
        name: the published name.
        count: the required Q; None for any.
    """
    cls = take(tensors, name)
    if cls.ndim != 3 or cls.shape[0] != 1 or (count is not None and cls.shape[1] != count):
        raise UserError(
            f"{name} is {list(cls.shape)}, not [1, {count or 'vectors'}, width]. Copy or download the file again."
        )
    return cls[0]


def take_mix_and_loss(tensors: dict[str, Tensor]) -> tuple[LossConfig, dict[str, Tensor]]:
    """Take out the weighted sum and the temperature. They are alike in all published checkpoints."""
    state = {"weighted_sum.weights": take(tensors, "audio_encoder.weightedsum_layer.weights").reshape(-1)}
    learned = "criterion.temperature" in tensors  # log(1 / tau)
    scale = tensors.pop("criterion.temperature").reshape(()) if learned else torch.tensor(math.log(1 / TEMPERATURE))
    state["loss.log_scale"] = scale.float()
    return LossConfig(temperature=TEMPERATURE, learn_temperature=learned), state


def take_batch_norm(tensors: dict[str, Tensor], old: str, new: str, keywords: int) -> dict[str, Tensor]:
    """Take out the BatchNorm of K keywords. The published index is d * K + k, the index here is k * D + d."""
    state = {f"{new}.num_batches_tracked": take(tensors, f"{old}.num_batches_tracked")}
    for part in ("weight", "bias", "running_mean", "running_var"):
        flat = take(tensors, f"{old}.{part}")
        if flat.ndim != 1 or len(flat) % keywords:
            raise UserError(
                f"{old}.{part} is {list(flat.shape)}: not a multiple of {keywords} keywords."
                " Copy or download the file again."
            )
        state[f"{new}.{part}"] = flat.reshape(-1, keywords).T.reshape(-1).contiguous()
    return state


def take_projection(tensors: dict[str, Tensor], old: str, new: str) -> tuple[Literal[1, 2], dict[str, Tensor]]:
    """Take out a projection of one or two linear layers. The keys decide which.

    Returns:
        The number of layers and the tensors.
    """
    if f"{old}.sequential.0.weight" not in tensors:
        return 1, take_linear(tensors, old, new)
    first, second = (take_linear(tensors, f"{old}.sequential.{i}", f"{new}.{i}") for i in (0, 3))
    return 2, first | second


def take_attention_block(tensors: dict[str, Tensor], old: str) -> dict[str, Tensor]:
    """Take out an attention block: attention and LayerNorm."""
    attention = take_attention(tensors, f"{old}.self_att.multihead_attn_layer", "head.attention.attention")
    return attention | take_linear(tensors, f"{old}.self_att.attentionBlock_Norm", "head.norm")


def has_transformer_block(tensors: dict[str, Tensor], old: str) -> bool:
    """Return whether the block of a branch is a whole transformer layer."""
    return any(name.startswith(f"{old}.self_att.model.") for name in tensors)


def take_transformer_block(tensors: dict[str, Tensor], old: str) -> dict[str, Tensor]:
    """Take out a transformer block: a post-norm transformer layer and one more LayerNorm."""
    layer = f"{old}.self_att.model.layers.0"
    state = take_attention(tensors, f"{layer}.self_attn", "head.attention.attention")
    state |= take_linear(tensors, f"{layer}.norm1", "head.norm_attention")
    state |= take_linear(tensors, f"{layer}.linear1", "head.feed_forward.0")
    state |= take_linear(tensors, f"{layer}.linear2", "head.feed_forward.3")
    state |= take_linear(tensors, f"{layer}.norm2", "head.norm_feed_forward")
    return state | take_linear(tensors, f"{old}.self_att.model.norm", "head.norm")


def take_temperature(tensors: dict[str, Tensor], old: str) -> float:
    """Take out the temperature of the quantiser, rounded to remove the error of single precision."""
    return round(float(take(tensors, f"{old}.vector_quantizer.curr_temp").reshape(())), 6)
