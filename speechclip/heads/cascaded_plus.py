"""The cascaded+ head: as many keywords as an utterance needs, by integrate-and-fire (Wang et al. 2024)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speechclip.heads.base import HeadOutput
from speechclip.heads.cif import IntegrateAndFire
from speechclip.heads.keywords import KeywordHead


class CascadedPlusHead(KeywordHead):
    """The frames alone through one attention block, cut into segments, each of which becomes a keyword.

    One BatchNorm serves all positions; its statistics are of keywords that exist (the published code's hold the
    positions behind an utterance's last keyword, too).

    Args:
        dim, table, allowed: see :class:`KeywordHead`. fire: cuts and sums up the segments. cls: [CLS] vectors before
        the frames. settings: further ones of :class:`KeywordHead`.
    """

    def __init__(
        self, dim: int, table: Tensor, allowed: Tensor, *, fire: IntegrateAndFire, cls: int = 0, **settings: Any
    ) -> None:
        super().__init__(dim, table, allowed, cls=cls, norms=1, **settings)
        self.cif = fire

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """frames [B, T, d], padding [B, T] bool -> keywords, of each utterance its own number."""
        return self._read_segments(self._block(frames, padding), padding, None)

    def set_step(self, step: int) -> None:
        """Integrate-and-fire is scaled in the first steps only."""
        self.cif.step = step

    def _read_segments(self, states: Tensor, padding: Tensor, embedding: Tensor | None) -> HeadOutput:
        """Keywords of the block's output at the frames [B, T, d]."""
        fired = self.cif(states, padding)
        attention = None if self.training else fired.weights  # as of the other heads
        keywords = self._keywords(fired.vectors, attention, fired.mask, fired.segments)
        return HeadOutput(embedding, keywords, fired.quantity)
