"""Dropout with masks that a CPU draws fast.

On a CPU, PyTorch draws one number for each element, with one thread. That took a fifth of a training step of mini's
parallel head. Here one number of 64 bits decides on four elements.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16  # a probability is rounded to 1/65536 on a CPU


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Set elements of ``x`` to zero at random and scale the others, as ``torch.nn.functional.dropout`` does.

    Args:
        x: any floating-point tensor.
        probability: of a zero, in [0, 1].
        training: return ``x`` unchanged if False.
    """
    level = round(probability * _LEVELS)
    if not training or not 0 < level < _LEVELS or x.device.type != "cpu":
        return nn.functional.dropout(x, probability, training)
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) >= level - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - level))


class Dropout(nn.Dropout):
    """:func:`dropout` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply :func:`dropout`."""
        return dropout(input, self.p, self.training)
