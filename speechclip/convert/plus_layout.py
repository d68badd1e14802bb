"""Tensors of the published SpeechCLIP+ checkpoints under this project's names (Wang et al. 2024).

Nine are public: Hybrid, Cascaded+ and Hybrid+, each for Base Flickr, Large Flickr and Large COCO. The head is told by
the names in it, its sizes by the tensors; the number of attention heads is in no tensor and follows the publication.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.config import CIFConfig, HeadConfig, ModelConfig, SpeechEncoderConfig
from speechclip.convert.tensors import (
    is_large,
    take_attention_block,
    take_batch_norm,
    take_cls,
    take_linear,
    take_mix_and_loss,
    take_projection,
    take_temperature,
)

_BRANCH = "cascaded_branch"


def convert_plus(tensors: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Settings and trained tensors of a SpeechCLIP+ checkpoint.

    Args:
        tensors: its state dict. What is used is taken out; the frozen encoders' tensors (CLIP's second copy, too) and
            the loss's buffers stay.
    Returns:
        the configuration without paths, and a state dict as of :meth:`speechclip.model.network.SpeechCLIP.trained_state`.
    Raises:
        UserError: a tensor that is missing or of a shape that does not fit, naming it.
    """
    head: Literal["hybrid", "cascaded_plus", "hybrid_plus"]
    large, norm = is_large(tensors), f"{_BRANCH}.bn_layer.bn_layer"
    fires = any(name.startswith(f"{_BRANCH}.downsampling.") for name in tensors)
    loss, state = take_mix_and_loss(tensors)
    state |= take_attention_block(tensors, _BRANCH)
    layers, projection = take_projection(tensors, f"{_BRANCH}.linear_proj", "head.projection")
    state |= projection
    keywords, parallel_layers, cif = HeadConfig.keywords, HeadConfig.parallel_layers, CIFConfig()
    if not fires:
        state["head.cls"] = cls = _hybrid_cls(tensors)
        keywords, head = len(cls) - 1, "hybrid"
    else:
        head = "cascaded_plus"
        if f"{_BRANCH}.cls" in tensors:
            head, state["head.cls"] = "hybrid_plus", take_cls(tensors, f"{_BRANCH}.cls", 1)
        cif, fire = _fire(tensors)
        state |= fire
    state |= take_batch_norm(tensors, norm, "head.batch_norm", 1 if fires else keywords)
    if head != "cascaded_plus":
        parallel_layers, projection = take_projection(
            tensors, f"{_BRANCH}.parallel_proj", "head.parallel_projection"
        )  # fmt: skip
        state |= projection
    eight = head == "hybrid_plus" or (head == "cascaded_plus" and large)
    settings = HeadConfig(
        name=head, attention_heads=8 if eight else 1, keywords=keywords, projection_layers=layers,
        parallel_layers=parallel_layers, quantizer_temperature=take_temperature(tensors, _BRANCH), cif=cif,
    )  # fmt: skip
    # of the Large models only Hybrid normalises the hidden states before it mixes them
    encoder = SpeechEncoderConfig(normalize=large, state_norm=large and head == "hybrid")
    return ModelConfig(speech_encoder=encoder, head=settings, loss=loss), state


def _hybrid_cls(tensors: dict[str, Tensor]) -> Tensor:
    """The parallel [CLS] before those of the keywords, [1 + K, d], published in one tensor or in two."""
    if f"{_BRANCH}.cls" in tensors:
        cls = take_cls(tensors, f"{_BRANCH}.cls")
    else:
        cls = torch.cat([take_cls(tensors, f"{_BRANCH}.parallel_cls", 1), take_cls(tensors, f"{_BRANCH}.cascaded_cls")])
    if len(cls) < 2:
        raise UserError(f"{_BRANCH}.cls holds {len(cls)} vectors: none for a keyword")
    return cls


def _fire(tensors: dict[str, Tensor]) -> tuple[CIFConfig, dict[str, Tensor]]:
    """Integrate-and-fire: convolutions, each of them with a dropout and a ReLU behind it, and the Linear."""
    old, new = f"{_BRANCH}.downsampling", "head.cif"
    state = take_linear(tensors, f"{old}.weight_proj.1", f"{new}.weight")
    layers = 0
    while f"{old}.conv.{3 * layers}.weight" in tensors or not layers:
        state |= take_linear(tensors, f"{old}.conv.{3 * layers}", f"{new}.convolutions.{layers}")
        layers += 1
    width = int(state[f"{new}.convolutions.0.weight"].shape[-1])
    return CIFConfig(layers=layers, width=width), state
