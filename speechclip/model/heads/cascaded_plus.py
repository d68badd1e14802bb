"""The cascaded+ head: integrate-and-fire predicts the number of keywords of each utterance (Wang et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from speechclip.config import CIFConfig, HeadConfig
from speechclip.model.heads.base import CASCADED, HeadInputs, HeadOutput, register_head
from speechclip.model.heads.cif import IntegrateAndFire
from speechclip.model.heads.keyword_head import KeywordHead, keyword_settings


class CascadedPlusHead(KeywordHead):
    """The frames pass one attention block and are cut into segments; each segment becomes a keyword.

    All positions share one BatchNorm. Its statistics cover existing keywords only. In the published code they also
    cover the empty positions behind the last keyword of an utterance.

    Args:
        dim, subword_embeddings, valid_mask: see :class:`KeywordHead`.
        cif: cuts the frames into segments and sums each segment up.
        cls: number of [CLS] vectors before the frames.
        settings: the other arguments of :class:`KeywordHead`.
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
        """Compute the keywords; their number differs between utterances. See :class:`Head`."""
        return self._read_segments(self._block(frames, padding), frames, padding, None)

    def set_step(self, step: int) -> None:
        """Pass the step to integrate-and-fire, which scales alpha in the first steps only."""
        super().set_step(step)
        self.cif.step = step

    def _read_segments(self, states: Tensor, frames: Tensor, padding: Tensor, embedding: Tensor | None) -> HeadOutput:
        """Compute the keywords from the block's output at the frames, [B, T, d], and the frames below the block."""
        fired = self.cif(states, padding, frames)
        attention = None if self.training else fired.weights  # as in the other heads
        keywords = self._keywords(fired.vectors, attention, fired.mask, fired.segments)
        return HeadOutput(embedding, keywords, fired.quantity_loss)


def build_cif(settings: CIFConfig, inputs: HeadInputs) -> IntegrateAndFire:
    """Build integrate-and-fire from its settings. The text transformer limits the number of keywords."""
    return IntegrateAndFire(
        inputs.dim, frames_per_keyword=settings.frames_per_keyword, layers=settings.layers, width=settings.width,
        dropout=settings.dropout, scaling_steps=settings.scaling_steps, tail=settings.tail_threshold,
        most=min(settings.max_keywords, inputs.max_keywords),
        changes=(settings.change_window, settings.change_distance) if settings.segments == "changes" else None,
    )  # fmt: skip


@register_head("cascaded_plus", branches=CascadedPlusHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> CascadedPlusHead:
    cif = build_cif(settings.cif, inputs)
    return CascadedPlusHead(inputs.dim, *inputs.subwords, cif=cif, **keyword_settings(settings))
