"""Tensors of published checkpoints, taken out of their state dict and renamed: what the layouts of all heads share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.config import LossConfig

TEMPERATURE = 0.07  # where it is not learned


def is_large(tensors: dict[str, Tensor]) -> bool:
    """Whether the checkpoint's HuBERT is of the Large type: layer norms in the convolutions, normalised input."""
    return "audio_encoder.encoder.feature_extractor.conv_layers.0.2.1.weight" in tensors


def take(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Take a tensor out. Raises UserError where there is none."""
    if name not in tensors:
        raise UserError(f"no tensor {name}")
    return tensors.pop(name)


def take_linear(
    tensors: dict[str, Tensor], old: str, new: str, parts: Sequence[str] = ("weight", "bias")
) -> dict[str, Tensor]:
    """Weight and bias of a layer, or other parts of it, renamed."""
    return {f"{new}.{part}": take(tensors, f"{old}.{part}") for part in parts}


def take_attention(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """An ``nn.MultiheadAttention``, renamed."""
    inside = take_linear(tensors, old, new, ("in_proj_weight", "in_proj_bias"))
    return inside | take_linear(tensors, f"{old}.out_proj", f"{new}.out_proj")


def take_cls(tensors: dict[str, Tensor], name: str, count: int | None = None) -> Tensor:
    """[CLS] vectors, published [1, Q, d], as [Q, d]; count: how many there have to be."""
    cls = take(tensors, name)
    if cls.ndim != 3 or cls.shape[0] != 1 or (count is not None and cls.shape[1] != count):
        raise UserError(f"{name} is {list(cls.shape)}, not [1, {count or 'vectors'}, width]")
    return cls[0]


def take_mix_and_loss(tensors: dict[str, Tensor]) -> tuple[LossConfig, dict[str, Tensor]]:
    """Layer mix and temperature, which every published head has alike."""
    state = {"weighted_sum.weights": take(tensors, "audio_encoder.weightedsum_layer.weights").reshape(-1)}
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


def take_projection(tensors: dict[str, Tensor], old: str, new: str) -> tuple[Literal[1, 2], dict[str, Tensor]]:
    """A projection: number of its linear layers, one or two as the keys say, and its tensors."""
    if f"{old}.sequential.0.weight" not in tensors:
        return 1, take_linear(tensors, old, new)
    first, second = (take_linear(tensors, f"{old}.sequential.{i}", f"{new}.{i}") for i in (0, 3))
    return 2, first | second


def take_attention_block(tensors: dict[str, Tensor], old: str) -> dict[str, Tensor]:
    """The attention block of the heads with keywords: attention and LayerNorm."""
    attention = take_attention(tensors, f"{old}.self_att.multihead_attn_layer", "head.attention.attention")
    return attention | take_linear(tensors, f"{old}.self_att.attentionBlock_Norm", "head.norm")


def take_temperature(tensors: dict[str, Tensor], old: str) -> float:
    """Temperature of the quantiser, free of what single precision adds."""
    return round(float(take(tensors, f"{old}.vector_quantizer.curr_temp").reshape(())), 6)
