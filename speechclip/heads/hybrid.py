"""The hybrid head: a parallel and a cascaded read-out of one attention block (Wang et al. 2024)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speechclip.heads.base import HeadOutput
from speechclip.heads.keywords import KeywordHead, projection


class HybridHead(KeywordHead):
    """1 + K [CLS] + frames through one attention block: the first becomes an embedding, the others keywords.

    Args:
        dim, table, allowed: see :class:`KeywordHead`. joint_dim: width of the CLIP embedding. keywords: K.
        parallel_layers: linear layers from the first [CLS] to the embedding, 1 or 2.
        settings: further ones of :class:`KeywordHead`.
    """

    def __init__(
        self, dim: int, joint_dim: int, table: Tensor, allowed: Tensor, *, keywords: int, dropout: float,
        parallel_layers: int = 1, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, table, allowed, cls=1 + keywords, norms=keywords, dropout=dropout, **settings)
        self.parallel_projection = projection(dim, joint_dim, parallel_layers, dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """frames [B, T, d], padding [B, T] bool -> an embedding [B, joint_dim], not normalised, and K keywords."""
        states, weights = self._block_at_cls(frames, padding)
        attention = None if weights is None else weights[:, 1:]
        return HeadOutput(self.parallel_projection(states[:, 0]), self._keywords(states[:, 1:], attention))
