"""The cascaded head: K [CLS] vectors become keywords for CLIP's text transformer (Shih et al. 2022)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speechclip.heads.base import HeadOutput
from speechclip.heads.keywords import KeywordHead


class CascadedHead(KeywordHead):
    """K [CLS] + frames through one attention block, projected and normalised into keywords, then quantised.

    Args:
        dim, table, allowed: see :class:`KeywordHead`. keywords: K. settings: further ones of :class:`KeywordHead`.
    """

    def __init__(self, dim: int, table: Tensor, allowed: Tensor, *, keywords: int, **settings: Any) -> None:
        super().__init__(dim, table, allowed, cls=keywords, norms=keywords, **settings)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """frames [B, T, d], padding [B, T] bool -> keywords for CLIP's text transformer."""
        return HeadOutput(None, self._keywords(*self._block_at_cls(frames, padding)))
