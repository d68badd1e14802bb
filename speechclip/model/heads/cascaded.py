"""The cascaded head: K [CLS] vectors become keywords for CLIP's text transformer (Shih et al. 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from speechclip.config import HeadConfig
from speechclip.model.heads.base import CASCADED, HeadInputs, HeadOutput, register_head
from speechclip.model.heads.keyword_head import KeywordHead, keyword_settings


class CascadedHead(KeywordHead):
    """K [CLS] vectors and the frames pass one attention block; the K outputs become keywords.

    Args:
        dim, subword_embeddings, valid_mask: see :class:`KeywordHead`.
        keywords: K.
        settings: the other arguments of :class:`KeywordHead`.
    """

    branches: ClassVar[tuple[str, ...]] = (CASCADED,)

    def __init__(
        self, dim: int, subword_embeddings: Tensor, valid_mask: Tensor, *, keywords: int, **settings: Any
    ) -> None:
        super().__init__(dim, subword_embeddings, valid_mask, cls=keywords, norms=keywords, **settings)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute K keywords per utterance. See :class:`Head`."""
        return HeadOutput(None, self._keywords(*self._block_at_cls(frames, padding)))


@register_head("cascaded", branches=CascadedHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> CascadedHead:
    return CascadedHead(inputs.dim, *inputs.subwords, keywords=settings.keywords, **keyword_settings(settings))
