"""The weighted sum of hidden states, with learned weights (Shih et al. 2022, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_KEPT_BYTES = 2**27  # normalised states of a batch that are kept for the backward pass; larger ones are computed again


class _FrozenWeightedSum(torch.autograd.Function):
    """sum_l w_l h_l over frozen states in their own (half) precision, without a float copy of all layers."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, states: Tensor, norm: bool) -> Tensor:
        """Sum states [B, L, T, D] with weights [L] to [B, T, D] in the precision of the weights.

        If ``norm`` is set, a LayerNorm without parameters is applied to the states first.
        """
        keep = norm and states.numel() * weights.element_size() <= _KEPT_BYTES
        kept = [_layer(states, at, weights.dtype, norm) for at in range(len(weights))] if keep else []

        def layer(at: int) -> Tensor:  # no name holds it, so one float copy is in memory at a time
            return kept[at] if kept else _layer(states, at, weights.dtype, norm)

        total = layer(0) * weights[0]
        for at in range(1, len(weights)):
            total.addcmul_(layer(at), weights[at])
        ctx.save_for_backward(states, *kept)
        ctx.norm = norm
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the weights [L]; the states are frozen."""
        states, *kept = ctx.saved_tensors
        grad = grads[0].reshape(-1)
        layers = kept or (_layer(states, layer, grad.dtype, ctx.norm) for layer in range(states.shape[1]))
        return torch.stack([torch.dot(grad, layer.reshape(-1)) for layer in layers]), None, None


def _layer(states: Tensor, layer: int, dtype: torch.dtype, norm: bool) -> Tensor:
    """Return h_l, [B, T, D], of states [B, L, T, D]."""
    state = states[:, layer].to(dtype)
    return nn.functional.layer_norm(state, state.shape[-1:]) if norm else state


class WeightedSum(nn.Module):
    """z = sum_l softmax(w)_l h_l with a learned vector w that starts at zero.

    Args:
        num_states: L, number of hidden states.
        state_norm: apply a LayerNorm without affine parameters to every h_l first (published Large models).

    Attributes:
        dropout: probability that a state takes no part in a training step. The weights of the others sum to 1.
    """

    def __init__(self, num_states: int, *, state_norm: bool = False) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))
        self.state_norm = state_norm
        self.dropout = 0.0

    def _present(self) -> Tensor:
        """Return the vector w, with -inf for states that a training step leaves out. At least one state stays."""
        if not self.training or not self.dropout:
            return self.weights
        dropped = torch.rand(len(self.weights)) < self.dropout
        dropped[torch.randint(len(dropped), (1,))] = False
        return self.weights.masked_fill(dropped.to(self.weights.device), float("-inf"))

    def forward(self, states: Tensor) -> Tensor:
        """Mix states [B, L, T, D] of any floating type to [B, T, D] in the type of the weights.

        The states get a gradient if they need one, as those of a trained speech encoder.
        """
        weights = self._present().softmax(dim=0)
        if states.requires_grad and torch.is_grad_enabled():
            layers = (_layer(states, at, weights.dtype, self.state_norm) * weights[at] for at in range(len(weights)))
            return torch.stack(list(layers)).sum(dim=0)
        mixed: Tensor = _FrozenWeightedSum.apply(weights, states, self.state_norm)
        return mixed
