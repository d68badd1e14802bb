"""From keyword vectors to rows of CLIP's subword subword_embeddings, with a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SubwordQuantizer(nn.Module):
    """Nearest subword by cosine, straight-through (Shih et al. 2022).

    Forward: the subword_embeddings row of the highest cosine. Backward: the gradient of softmax(cosine / temperature) x subword_embeddings.
    The cosines are one matrix product of normalised vectors; nothing of size batch x vocabulary x width exists.

    Args:
        subword_embeddings: [V, D] subword embeddings, frozen. valid_mask: [V] bool, False for special tokens.
        temperature: of the softmax.
    """

    subword_embeddings: Tensor
    normalized: Tensor
    valid_mask: Tensor

    def __init__(self, subword_embeddings: Tensor, valid_mask: Tensor, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        # not saved: they come from the frozen CLIP, and the checkpoint names their ids
        self.register_buffer("subword_embeddings", subword_embeddings.detach().clone(), persistent=False)
        self.register_buffer(
            "normalized", nn.functional.normalize(subword_embeddings.detach().float(), dim=-1), persistent=False
        )
        self.register_buffer("valid_mask", valid_mask.clone(), persistent=False)

    def cosines(self, vectors: Tensor) -> Tensor:
        """[..., D] -> [..., V], special tokens included."""
        return nn.functional.normalize(vectors, dim=-1) @ self.normalized.to(vectors.dtype).T

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Keyword vectors [B, K, D] -> (quantised [B, K, D], rows [B, K] int64).

        Never in half precision: thousands of cosines tie there, and training would see other rows than evaluation.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
            cosines = self.cosines(vectors).masked_fill(~self.valid_mask, float("-inf"))
            rows = cosines.argmax(dim=-1)
            soft = (cosines / self.temperature).softmax(dim=-1) @ self.subword_embeddings.to(cosines.dtype)
        return self.subword_embeddings[rows].to(soft.dtype) + (soft - soft.detach()), rows
