"""The convolutional front end of HuBERT and its kin on a CPU: half of the encoder's time there.

The same numbers as transformers' modules up to rounding, in another order. Frames lie channels-last, utterance by
utterance and a second at a time, so that what a layer wrote is in the cache when the next one reads it; a convolution
whose kernel is its stride is one matrix product. The group norm of Base models needs the mean and variance of every
channel over time: both follow from the covariance of the waveform's windows, so the norm goes into the first layer's
weights. Frames that see nothing but padding are not computed: the encoder's mask sets them to zero.
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
    """A convolution [O, I, k], its stride, and the LayerNorm before its GELU, if there is one."""

    weight: Tensor
    bias: Tensor | None
    stride: int
    norm: nn.LayerNorm | None


def can_run(extractor: Any, batch: Tensor) -> bool:
    """Whether :func:`convolve` does what ``extractor``, of transformers, does on ``batch`` [B, N]."""
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
    """Features of padded waveforms.

    Args:
        extractor: transformers' feature encoder, for which :func:`can_run` holds. batch: [B, N], zeros after each
            waveform. lengths: B, the samples of each. field: samples that a frame sees.
    Returns:
        [B, T, C]; frames that see padding alone are zero.
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
    """The first layer with the group norm over a whole waveform [N] in its weights, in the place of after it."""
    norm: Any = layer.norm
    kernel = layer.weight.shape[2]
    windows = wave.unfold(0, kernel, layer.stride).double()  # [T, k]
    mean = windows.mean(dim=0)
    covariance = (windows.T @ windows) / len(windows) - torch.outer(mean, mean)
    weight = layer.weight[:, 0].double()  # [O, k]
    variance = ((weight @ covariance) * weight).sum(dim=1).clamp(min=0)
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    # a bias of the convolution moves the mean with it
    bias = norm.bias.double() - scale * (weight @ mean)
    return _Layer((weight * scale[:, None]).float()[:, None], bias.float(), layer.stride, None)


def _arranged(layer: _Layer) -> _Layer:
    """A layer's weights as :func:`_apply` takes them: [O, k * I] where kernel and stride agree, else [O, I, 1, k]."""
    outputs, _, kernel = layer.weight.shape
    if kernel == layer.stride:
        return layer._replace(weight=layer.weight.transpose(1, 2).reshape(outputs, -1))
    return layer._replace(weight=layer.weight[:, :, None].contiguous(memory_format=torch.channels_last))


def _enter(layer: _Layer, wave: Tensor) -> Tensor:
    """The first layer: samples [n] -> [t, O]."""
    windows = wave.unfold(0, layer.weight.shape[2], layer.stride).contiguous()
    return _finish(layer, windows, layer.weight[:, 0])


def _apply(layer: _Layer, hidden: Tensor) -> Tensor:
    """A further layer: [t, I] -> [t', O]."""
    if layer.weight.ndim == 2:
        steps = len(hidden) // layer.stride
        return _finish(layer, hidden[: steps * layer.stride].reshape(steps, -1), layer.weight)
    image = hidden.T[None, :, None]  # [1, I, 1, t], channels last
    convolved = nn.functional.conv2d(image, layer.weight, layer.bias, (1, layer.stride))[0, :, 0].T
    return nn.functional.gelu(convolved if layer.norm is None else layer.norm(convolved))


def _finish(layer: _Layer, windows: Tensor, weight: Tensor) -> Tensor:
    """Product, norm, GELU: [t, k] -> [t, O]."""
    if layer.norm is None:
        return linear(windows, weight, layer.bias, gelu=True)
    return nn.functional.gelu(layer.norm(linear(windows, weight, layer.bias)))
