"""The convolutional front end of HuBERT and similar encoders on a CPU, where it takes half of the encoder's time.

The numbers equal those of transformers' modules up to rounding. The order of computation differs: it is channels-last
and goes through each utterance second by second, so that the output of a layer is still in the cache when the next
layer reads it. A convolution with kernel = stride is one matrix product. The group norm of Base models needs the mean
and the variance of every channel over time. Both follow from the covariance of the waveform's windows, so the norm is
folded into the weights of the first layer. Frames that see only padding are not computed, because the encoder's mask
sets them to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechclip.common.constants import HOP, SAMPLE_RATE
from speechclip.model.encoders.kernels.linear import by_onednn, is_gelu, linear

CHUNK = SAMPLE_RATE // HOP  # frames computed at a time


class _Layer(NamedTuple):
    """A convolution [O, I, k], its stride, and the LayerNorm before its GELU (or None)."""

    weight: Tensor
    bias: Tensor | None
    stride: int
    norm: nn.LayerNorm | None


def can_run(extractor: Any, batch: Tensor) -> bool:
    """Return whether :func:`convolve` can replace transformers' ``extractor`` on a batch [B, N]."""
    layers = getattr(extractor, "conv_layers", None)
    if not isinstance(layers, nn.ModuleList) or not by_onednn(batch):
        return False
    norms = [getattr(layer, "layer_norm", None) for layer in layers]
    first = norms[0]
    known = isinstance(first, nn.GroupNorm) and first.num_groups == first.num_channels
    known = (known or _is_plain_norm(first)) and all(_is_plain_norm(norm) for norm in norms[1:])
    modules: list[Any] = list(layers)
    usual = ((0,), (1,), 1)
    return known and all(
        is_gelu(layer.activation) and (layer.conv.padding, layer.conv.dilation, layer.conv.groups) == usual
        for layer in modules
    )


def _is_plain_norm(norm: Any) -> bool:
    return norm is None or isinstance(norm, nn.LayerNorm)


def convolve(extractor: Any, batch: Tensor, lengths: Sequence[int], field: int) -> Tensor:
    """Compute the features of padded waveforms.

    Args:
        extractor: transformers' feature encoder. :func:`can_run` must hold for it.
        batch: [B, N], zeros after each waveform.
        lengths: B numbers, samples of each waveform.
        field: number of samples that a frame sees.

    Returns:
        [B, T, C]; frames that see only padding are zero.
    """
    layers = [
        _Layer(layer.conv.weight, layer.conv.bias, layer.conv.stride[0], getattr(layer, "layer_norm", None))
        for layer in extractor.conv_layers
    ]
    first, rest = layers[0], [_arranged(layer) for layer in layers[1:]]
    frames = (batch.shape[1] - field) // HOP + 1
    features = batch.new_zeros(len(batch), frames, layers[-1].weight.shape[0])
    for out, wave, samples in zip(features, batch, lengths):
        entry = _folded(first, wave) if isinstance(first.norm, nn.GroupNorm) else first
        needed = min(frames, -(-samples // HOP))
        for start in range(0, needed, CHUNK):
            stop = min(start + CHUNK, needed)
            hidden = _enter(entry, wave[start * HOP : (stop - 1) * HOP + field])
            for layer in rest:
                hidden = _apply(layer, hidden)
            out[start:stop] = hidden
    return features


def _folded(layer: _Layer, wave: Tensor) -> _Layer:
    """Return the first layer with the group norm over a whole waveform [N] folded into its weights."""
    norm: Any = layer.norm
    kernel = layer.weight.shape[2]
    windows = wave.unfold(0, kernel, layer.stride).double()  # [T, k]
    mean = windows.mean(dim=0)
    covariance = (windows.T @ windows) / len(windows) - torch.outer(mean, mean)
    weight = layer.weight[:, 0].double()  # [O, k]
    variance = ((weight @ covariance) * weight).sum(dim=1).clamp(min=0)
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    # A bias of the convolution would move the mean by the same amount, so it cancels out.
    bias = norm.bias.double() - scale * (weight @ mean)
    return _Layer((weight * scale[:, None]).float()[:, None], bias.float(), layer.stride, None)


def _arranged(layer: _Layer) -> _Layer:
    """Arrange a layer's weights for :func:`_apply`: [O, k * I] if kernel = stride, else [O, I, 1, k]."""
    outputs, _, kernel = layer.weight.shape
    if kernel == layer.stride:
        return layer._replace(weight=layer.weight.transpose(1, 2).reshape(outputs, -1))
    return layer._replace(weight=layer.weight[:, :, None].contiguous(memory_format=torch.channels_last))


def _enter(layer: _Layer, wave: Tensor) -> Tensor:
    """Apply the first layer to samples [n]: [t, O]."""
    windows = wave.unfold(0, layer.weight.shape[2], layer.stride).contiguous()
    return _finish(layer, windows, layer.weight[:, 0])


def _apply(layer: _Layer, hidden: Tensor) -> Tensor:
    """Apply a later layer to [t, I]: [t', O]."""
    if layer.weight.ndim == 2:
        steps = len(hidden) // layer.stride
        return _finish(layer, hidden[: steps * layer.stride].reshape(steps, -1), layer.weight)
    image = hidden.T[None, :, None]  # [1, I, 1, t], channels last
    convolved = nn.functional.conv2d(image, layer.weight, layer.bias, (1, layer.stride))[0, :, 0].T
    return nn.functional.gelu(convolved if layer.norm is None else layer.norm(convolved))


def _finish(layer: _Layer, windows: Tensor, weight: Tensor) -> Tensor:
    """Multiply windows [t, k] with weights, normalise, and apply GELU: [t, O]."""
    if layer.norm is None:
        return linear(windows, weight, layer.bias, gelu=True)
    return nn.functional.gelu(layer.norm(linear(windows, weight, layer.bias)))
