"""The quantiser: it replaces keyword vectors by rows of CLIP's subword embeddings and has a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Annealing:
    """A temperature that changes geometrically from ``first`` to ``last``, and a soft start of training.

    A high temperature gives many subwords a gradient. A low one brings the gradient near to that of the chosen subword.
    In a soft start, a keyword is the expected subword embedding and not the nearest one, so its gradient is exact. The
    published models have a fixed temperature and no soft start. In evaluation neither has an effect.

    Attributes:
        first: temperature of the first training step.
        last: temperature from step ``steps`` on.
        steps: training steps in which the temperature changes.
        soft_steps: training steps of the soft start.
    """

    first: float
    last: float
    steps: int = 0
    soft_steps: int = 0

    def temperature(self, step: int) -> float:
        """Return the temperature of a training step, counted from 0."""
        done = min(1.0, step / self.steps) if self.steps else 1.0
        return self.first * (self.last / self.first) ** done


class SubwordQuantizer(nn.Module):
    """Nearest subword by cosine, straight-through (Shih et al. 2022).

    The forward pass returns the subword embedding with the highest cosine. The backward pass uses the gradient of
    softmax(cosine / temperature) x subword embeddings. The cosines are one matrix product of normalised vectors, so no
    tensor has the size batch x vocabulary x width.

    Args:
        subword_embeddings: [V, D], frozen.
        valid_mask: [V] bool, False for special tokens.
        temperature: temperature of the softmax.
    """

    subword_embeddings: Tensor
    normalized: Tensor
    valid_mask: Tensor

    def __init__(self, subword_embeddings: Tensor, valid_mask: Tensor, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.soft = False  # True in a soft start
        # Not saved: the frozen CLIP has them, and the checkpoint holds their ids.
        self.register_buffer("subword_embeddings", subword_embeddings.detach().clone(), persistent=False)
        self.register_buffer(
            "normalized", nn.functional.normalize(subword_embeddings.detach().float(), dim=-1), persistent=False
        )
        self.register_buffer("valid_mask", valid_mask.clone(), persistent=False)

    def cosines(self, vectors: Tensor) -> Tensor:
        """Return the cosines [..., V] of vectors [..., D] with all subword embeddings, special tokens included."""
        return nn.functional.normalize(vectors, dim=-1) @ self.normalized.to(vectors.dtype).T

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise keyword vectors [B, K, D].

        This never runs in half precision. Thousands of cosines are equal there, so training and evaluation would choose
        different rows.

        Returns:
            The quantised vectors [B, K, D] and their rows [B, K] int64.
        """
        quantized, rows, _ = self.quantize(vectors)
        return quantized, rows

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute :meth:`forward`, and also return the probabilities of all subwords [B, K, V] (softmax)."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
            cosines = self.cosines(vectors).masked_fill(~self.valid_mask, float("-inf"))
            rows = cosines.argmax(dim=-1)
            probabilities = (cosines / self.temperature).softmax(dim=-1)
            soft = probabilities @ self.subword_embeddings.to(cosines.dtype)
        if self.soft and self.training:
            return soft, rows, probabilities
        return self.subword_embeddings[rows].to(soft.dtype) + (soft - soft.detach()), rows, probabilities
