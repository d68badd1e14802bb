"""Matrix products by oneDNN. torch uses MKL, which reaches half of the speed of an AMD processor.

The products equal torch's up to rounding. Everything except single precision on an x86 CPU uses torch's operators.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

from speechclip.model.encoders.kernels import enabled


def by_onednn(*tensors: Tensor) -> bool:
    """Return whether oneDNN multiplies these tensors: not empty, single precision, on the CPU, without autocast."""
    return (
        _HAS_ONEDNN
        and enabled()
        and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0 for t in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Return ``x @ weight.T + bias``, [..., O].

    Gradients reach ``x``. If ``weight`` or ``bias`` needs a gradient, torch's operator runs.

    Args:
        x: [..., I].
        weight: [O, I].
        bias: [O] or None.
        gelu: apply GELU to the result.
    """
    trained = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    if trained or not by_onednn(x, weight):
        y = nn.functional.linear(x, weight, bias)
        return nn.functional.gelu(y) if gelu else y
    if torch.is_grad_enabled() and x.requires_grad:
        y = _FrozenProduct.apply(x, weight, bias)
        return nn.functional.gelu(y) if gelu else y
    return _product(x, weight, bias, gelu)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    kind, algorithm = ("gelu", "none") if gelu else ("none", "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], algorithm)
    return y


class _FrozenProduct(torch.autograd.Function):
    """A product with a gradient for its first factor only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0], weight.t(), None), None, None


class FrozenLinear(nn.Linear):
    """A linear layer for frozen models, computed by :func:`linear`.

    Args:
        layer: the layer that it replaces; the parameters are shared.
        gelu: apply GELU to the output.
    """

    def __init__(self, layer: nn.Linear, *, gelu: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to [..., I]: [..., O]."""
        return linear(x, self.weight, self.bias, gelu=self.gelu)


def freeze_linears(model: nn.Module) -> None:
    """Replace every ``nn.Linear`` of a frozen model by :class:`FrozenLinear`. Names and parameters stay.

    Subclasses of ``nn.Linear`` are kept. The GELU of transformers' feed-forward blocks becomes part of the layer before
    it.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                gelu = name == "intermediate_dense" and is_gelu(getattr(parent, "intermediate_act_fn", None))
                setattr(parent, name, FrozenLinear(child, gelu=gelu))
                if gelu:
                    parent.intermediate_act_fn = nn.Identity()


def is_gelu(activation: Any) -> bool:
    """Return whether a module or function is the exact GELU, or transformers' wrapper of it."""
    inner = getattr(activation, "act", activation)
    return inner is nn.functional.gelu or (isinstance(inner, nn.GELU) and inner.approximate == "none")


_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
