"""OpenAI's quick GELU with less memory for its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechclip.model.encoders.kernels import enabled


class QuickGelu(nn.Module):
    """OpenAI's x * sigmoid(1.702 x). It replaces open_clip's module."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to a tensor of any shape."""
        y: Tensor = _QuickGelu.apply(x) if enabled() else x * torch.sigmoid(1.702 * x)
        return y


class _QuickGelu(torch.autograd.Function):
    """Keep only x for the gradient. Autograd also keeps the sigmoid, a quarter of the text transformer's memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (1.702 * x).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = (1.702 * x).sigmoid_()
        return (1 - gate).mul_(x).mul_(1.702).add_(1).mul_(gate).mul_(grads[0])


def replace_quick_gelu(model: nn.Module) -> None:
    """Replace every quick GELU of an open_clip model by :class:`QuickGelu`."""
    from open_clip.transformer import QuickGELU

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is QuickGELU:
                setattr(parent, name, QuickGelu())
