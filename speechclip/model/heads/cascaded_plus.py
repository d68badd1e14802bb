"""The cascaded+ head: as many keywords as an utterance needs, by integrate-and-fire (Wang et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from speechclip.config import CIFConfig, HeadConfig
from speechclip.model.heads.base import CASCADED, HeadInputs, HeadOutput, register_head
from speechclip.model.heads.cif import IntegrateAndFire
from speechclip.model.heads.keyword_head import KeywordHead, keyword_settings


class CascadedPlusHead(KeywordHead):
    """The frames alone through one attention block, cut into segments, each of which becomes a keyword.

    One BatchNorm serves all positions; its statistics are of keywords that exist (the published code's hold the
    positions behind an utterance's last keyword, too).

    Args:
        dim, subword_embeddings, valid_mask: see :class:`KeywordHead`. cif: cuts and sums up the segments. cls: [CLS] vectors before
        the frames. settings: further ones of :class:`KeywordHead`.
    """

    branches: ClassVar[tuple[str, ...]] = (CASCADED,)

    def __init__(
        self,
        dim: int,
        subword_embeddings: Tensor,
        valid_mask: Tensor,
        *,
        cif: IntegrateAndFire,
        cls: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(dim, subword_embeddings, valid_mask, cls=cls, norms=1, **settings)
        self.cif = cif

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
        return HeadOutput(embedding, keywords, fired.quantity_loss)


def build_cif(settings: CIFConfig, inputs: HeadInputs) -> IntegrateAndFire:
    """Build integrate-and-fire from its settings; the text transformer limits the number of keywords."""
    return IntegrateAndFire(
        inputs.dim, frames_per_keyword=settings.frames_per_keyword, layers=settings.layers, width=settings.width,
        dropout=settings.dropout, scaling_steps=settings.scaling_steps, tail=settings.tail_threshold,
        most=min(settings.max_keywords, inputs.max_keywords),
    )  # fmt: skip


@register_head("cascaded_plus", branches=CascadedPlusHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> CascadedPlusHead:
    cif = build_cif(settings.cif, inputs)
    return CascadedPlusHead(inputs.dim, *inputs.subwords, cif=cif, **keyword_settings(settings))
