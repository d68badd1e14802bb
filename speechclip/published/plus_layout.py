"""Tensors of the published SpeechCLIP+ checkpoints under this project's names (Wang et al. 2024).

Nine are public: Hybrid, Cascaded+ and Hybrid+, each for Base Flickr, Large Flickr and Large COCO. The head is told by
the names in it, its sizes by the tensors; the number of attention heads is in no tensor and follows the publication.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from speechclip.config import FireConfig, HeadConfig, LossConfig, ModelConfig, SpeechEncoderConfig
from speechclip.errors import UserError

TEMPERATURE = 0.07  # where it is not learned
_BRANCH = "cascaded_branch."
_LARGE = "audio_encoder.encoder.feature_extractor.conv_layers.0.2.1.weight"  # a layer norm that Base does not have
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def convert(tensors: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Settings and trained tensors of a SpeechCLIP+ checkpoint.

    Args:
        tensors: its state dict. What is used is taken out; the frozen encoders' tensors (CLIP's second copy, too) and
            the loss's buffers stay.
    Returns:
        the configuration without paths, and a state dict as of :meth:`speechclip.model.SpeechCLIP.trained_state`.
    Raises:
        UserError: a tensor that is missing or of a shape that does not fit, naming it.
    """
    head: Literal["hybrid", "cascaded_plus", "hybrid_plus"]
    large = _LARGE in tensors
    fires = any(name.startswith(f"{_BRANCH}downsampling.") for name in tensors)
    loss, state = _mix_and_loss(tensors)
    state |= _attention_block(tensors)
    layers, projection = _projection(tensors, "linear_proj", "head.projection")
    temperature = round(float(_take(tensors, f"{_BRANCH}vector_quantizer.curr_temp").reshape(())), 6)
    state |= projection
    if not fires:
        state["head.cls"] = cls = _hybrid_cls(tensors)
        keywords, head = len(cls) - 1, "hybrid"
        state |= _batch_norm(tensors, keywords)
    else:
        keywords, head = HeadConfig.keywords, "cascaded_plus"
        if f"{_BRANCH}cls" in tensors:
            head, state["head.cls"] = "hybrid_plus", _cls(tensors, "cls", 1)
        state |= _batch_norm(tensors, 1)
    parallel_layers, cif = 1, FireConfig()
    if head != "cascaded_plus":
        parallel_layers, projection = _projection(tensors, "parallel_proj", "head.parallel_projection")
        state |= projection
    if fires:
        cif, fire = _fire(tensors)
        state |= fire
    eight = head == "hybrid_plus" or (head == "cascaded_plus" and large)
    settings = HeadConfig(
        name=head, attention_heads=8 if eight else 1, keywords=keywords, projection_layers=2 if layers == 2 else 1,
        parallel_layers=2 if parallel_layers == 2 else 1, quantizer_temperature=temperature, cif=cif,
    )  # fmt: skip
    # of the Large models only Hybrid normalises the hidden states before it mixes them
    encoder = SpeechEncoderConfig(normalize=large, state_norm=large and head == "hybrid")
    return ModelConfig(speech_encoder=encoder, head=settings, loss=loss), state


def _take(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"no tensor {name}")
    return tensors.pop(name)


def _renamed(
    tensors: dict[str, Tensor], old: str, new: str, parts: Sequence[str] = ("weight", "bias")
) -> dict[str, Tensor]:
    return {f"{new}.{part}": _take(tensors, f"{_BRANCH}{old}.{part}") for part in parts}


def _mix_and_loss(tensors: dict[str, Tensor]) -> tuple[LossConfig, dict[str, Tensor]]:
    """Layer mix and log(1 / temperature), learned or not."""
    mix = _take(tensors, "audio_encoder.weightedsum_layer.weights").reshape(-1)
    learned = "criterion.temperature" in tensors
    scale = tensors.pop("criterion.temperature").reshape(()) if learned else torch.tensor(math.log(1 / TEMPERATURE))
    return LossConfig(temperature=TEMPERATURE, learn_temperature=learned), {
        "layer_mix.weights": mix, "loss.log_scale": scale.float()
    }  # fmt: skip


def _attention_block(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    old, new = "self_att.multihead_attn_layer", "head.attention.attention"
    return {
        **_renamed(tensors, old, new, ("in_proj_weight", "in_proj_bias")),
        **_renamed(tensors, f"{old}.out_proj", f"{new}.out_proj"),
        **_renamed(tensors, "self_att.attentionBlock_Norm", "head.norm"),
    }


def _projection(tensors: dict[str, Tensor], old: str, new: str) -> tuple[int, dict[str, Tensor]]:
    """One linear layer or two, as the keys say: their number and tensors."""
    if f"{_BRANCH}{old}.sequential.0.weight" not in tensors:
        return 1, _renamed(tensors, old, new)
    first, second = (_renamed(tensors, f"{old}.sequential.{i}", f"{new}.{i}") for i in (0, 3))
    return 2, first | second


def _cls(tensors: dict[str, Tensor], name: str, count: int | None = None) -> Tensor:
    """[CLS] vectors, published [1, Q, d], as [Q, d]."""
    cls = _take(tensors, f"{_BRANCH}{name}")
    if cls.ndim != 3 or cls.shape[0] != 1 or (count is not None and cls.shape[1] != count):
        raise UserError(f"{_BRANCH}{name} is {list(cls.shape)}, not [1, {count or 'vectors'}, width]")
    return cls[0]


def _hybrid_cls(tensors: dict[str, Tensor]) -> Tensor:
    """The parallel [CLS] before those of the keywords, [1 + K, d], published in one tensor or in two."""
    if f"{_BRANCH}cls" in tensors:
        cls = _cls(tensors, "cls")
    else:
        cls = torch.cat([_cls(tensors, "parallel_cls", 1), _cls(tensors, "cascaded_cls")])
    if len(cls) < 2:
        raise UserError(f"{_BRANCH}cls holds {len(cls)} vectors: none for a keyword")
    return cls


def _batch_norm(tensors: dict[str, Tensor], keywords: int) -> dict[str, Tensor]:
    """BatchNorm of K keywords, published with the dimension major, (d, k) -> d * K + k; here k * D + d."""
    old, new = f"{_BRANCH}bn_layer.bn_layer", "head.batch_norm"
    state = {f"{new}.num_batches_tracked": _take(tensors, f"{old}.num_batches_tracked")}
    for part in _STATISTICS:
        flat = _take(tensors, f"{old}.{part}")
        if flat.ndim != 1 or len(flat) % keywords:
            raise UserError(f"{old}.{part} is {list(flat.shape)}: not a multiple of {keywords} keywords")
        state[f"{new}.{part}"] = flat.reshape(-1, keywords).T.reshape(-1).contiguous()
    return state


def _fire(tensors: dict[str, Tensor]) -> tuple[FireConfig, dict[str, Tensor]]:
    """Integrate-and-fire: convolutions, each of them with a dropout and a ReLU behind it, and the Linear."""
    old, new = "downsampling", "head.cif"
    state = _renamed(tensors, f"{old}.weight_proj.1", f"{new}.weight")
    layers = 0
    while f"{_BRANCH}{old}.conv.{3 * layers}.weight" in tensors or not layers:
        state |= _renamed(tensors, f"{old}.conv.{3 * layers}", f"{new}.convolutions.{layers}")
        layers += 1
    width = int(state[f"{new}.convolutions.0.weight"].shape[-1])
    return FireConfig(layers=layers, width=width), state
