"""The hybrid+ head: a parallel read-out beside keywords by integrate-and-fire (Wang et al. 2024)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speechclip.heads.base import HeadOutput
from speechclip.heads.cascaded_plus import CascadedPlusHead
from speechclip.heads.keywords import projection


class HybridPlusHead(CascadedPlusHead):
    """One [CLS] + frames through one attention block: the [CLS] becomes an embedding, segments of the frames keywords.

    Args:
        dim, table, allowed, settings: see :class:`CascadedPlusHead`. joint_dim: width of the CLIP embedding.
        parallel_layers: linear layers from the [CLS] to the embedding, 1 or 2.
    """

    def __init__(
        self, dim: int, joint_dim: int, table: Tensor, allowed: Tensor, *, dropout: float, parallel_layers: int = 1,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, table, allowed, cls=1, dropout=dropout, **settings)
        self.parallel_projection = projection(dim, joint_dim, parallel_layers, dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """frames [B, T, d], padding [B, T] bool -> an embedding [B, joint_dim], not normalised, and keywords."""
        states = self._block(frames, padding)
        return self._read_segments(states[:, 1:], padding, self.parallel_projection(states[:, 0]))
