"""Tensors of the published SpeechCLIP+ checkpoints under this project's names (Wang et al. 2024).

Nine are public: Hybrid, Cascaded+ and Hybrid+, each for Base Flickr8k, Large Flickr8k and Large SpokenCOCO. The names
of the tensors decide which head it is, their shapes give its sizes. No tensor holds the number of attention heads; it
follows the publication.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.config import CIFConfig, HeadConfig, ModelConfig, SpeechEncoderConfig
from speechclip.convert.tensors import (
    has_transformer_block,
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

_BRANCH = "cascaded_branch"


def convert_plus(tensors: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the settings and the trained tensors of a SpeechCLIP+ checkpoint.

    Args:
        tensors: the state dict. The used tensors are taken out. Those of the frozen encoders, of CLIP's second copy and
            of the loss's buffers stay.

    Returns:
        The configuration without paths, and a state dict as of
        :meth:`speechclip.model.network.SpeechNetwork.trained_state`.

    Raises:
        UserError: a tensor is missing or has a wrong shape. The message names it.
    """
    name: Literal["hybrid", "cascaded_plus", "hybrid_plus"]
    large = is_large(tensors)
    has_cif = any(key.startswith(f"{_BRANCH}.downsampling.") for key in tensors)
    transformer = has_transformer_block(tensors, _BRANCH)  # COCO's Large Hybrid
    loss, state = take_mix_and_loss(tensors)
    state |= (take_transformer_block if transformer else take_attention_block)(tensors, _BRANCH)
    layers, projection = take_projection(tensors, f"{_BRANCH}.linear_proj", "head.projection")
    state |= projection
    keywords, parallel_layers, cif = HeadConfig.keywords, HeadConfig.parallel_layers, CIFConfig()
    if not has_cif:
        state["head.cls"] = cls = _hybrid_cls(tensors)
        keywords, name = len(cls) - 1, "hybrid"
    else:
        name = "cascaded_plus"
        if f"{_BRANCH}.cls" in tensors:
            name, state["head.cls"] = "hybrid_plus", take_cls(tensors, f"{_BRANCH}.cls", 1)
        cif, cif_state = _take_cif(tensors)
        state |= cif_state
    norms = 1 if has_cif else keywords
    state |= take_batch_norm(tensors, f"{_BRANCH}.bn_layer.bn_layer", "head.batch_norm", norms)
    if name != "cascaded_plus":
        parallel_layers, projection = take_projection(
            tensors, f"{_BRANCH}.parallel_proj", "head.parallel_projection"
        )  # fmt: skip
        state |= projection
    eight = name == "hybrid_plus" or (name == "cascaded_plus" and large)
    head = HeadConfig(
        name=name, block="transformer" if transformer else "attention", attention_heads=8 if eight else 1,
        keywords=keywords, projection_layers=layers, parallel_layers=parallel_layers,
        quantizer_temperature=take_temperature(tensors, _BRANCH), cif=cif,
    )  # fmt: skip
    # Among the Large models, only Hybrid normalises the hidden states before the weighted sum.
    encoder = SpeechEncoderConfig(normalize=large, state_norm=large and name == "hybrid")
    return ModelConfig(speech_encoder=encoder, head=head, loss=loss), state


def _hybrid_cls(tensors: dict[str, Tensor]) -> Tensor:
    """Return the [CLS] of the parallel branch and then those of the keywords, [1 + K, d].

    They are published in one tensor or in two.
    """
    if f"{_BRANCH}.cls" in tensors:
        cls = take_cls(tensors, f"{_BRANCH}.cls")
    else:
        cls = torch.cat([take_cls(tensors, f"{_BRANCH}.parallel_cls", 1), take_cls(tensors, f"{_BRANCH}.cascaded_cls")])
    if len(cls) < 2:
        raise UserError(
            f"{_BRANCH}.cls has {len(cls)} vectors; a hybrid head needs at least 2. Copy or download the file again."
        )
    return cls


def _take_cif(tensors: dict[str, Tensor]) -> tuple[CIFConfig, dict[str, Tensor]]:
    """Take out integrate-and-fire: convolutions, each followed by a dropout and a ReLU, and the Linear."""
    old, new = f"{_BRANCH}.downsampling", "head.cif"
    state = take_linear(tensors, f"{old}.weight_proj.1", f"{new}.weight")
    layers = 0
    while f"{old}.conv.{3 * layers}.weight" in tensors or not layers:
        state |= take_linear(tensors, f"{old}.conv.{3 * layers}", f"{new}.convolutions.{layers}")
        layers += 1
    width = int(state[f"{new}.convolutions.0.weight"].shape[-1])
    return CIFConfig(layers=layers, width=width), state
