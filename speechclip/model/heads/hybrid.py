"""The hybrid head: a parallel and a cascaded branch of one attention block (Wang et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from speechclip.config import HeadConfig
from speechclip.model.heads.base import CASCADED, PARALLEL, HeadInputs, HeadOutput, register_head
from speechclip.model.heads.keyword_head import KeywordHead, keyword_settings, projection


class HybridHead(KeywordHead):
    """1 + K [CLS] vectors and the frames pass one attention block.

    Args:
        dim, subword_embeddings, valid_mask: see :class:`KeywordHead`.
        joint_dim: width of the CLIP embedding.
        keywords: K.
        dropout: see :class:`KeywordHead`.
        parallel_layers: number of linear layers from the first [CLS] to the embedding, 1 or 2.
        settings: the other arguments of :class:`KeywordHead`.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL, CASCADED)

    def __init__(
        self, dim: int, joint_dim: int, subword_embeddings: Tensor, valid_mask: Tensor, *, keywords: int,
        dropout: float,
        parallel_layers: int = 1, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            dim, subword_embeddings, valid_mask, cls=1 + keywords, norms=keywords, dropout=dropout, **settings
        )
        self.parallel_projection = projection(dim, joint_dim, parallel_layers, dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute an embedding and K keywords per utterance. See :class:`Head`."""
        states, weights = self._block_at_cls(frames, padding)
        attention = None if weights is None else weights[:, 1:]
        return HeadOutput(self.parallel_projection(states[:, 0]), self._keywords(states[:, 1:], attention))


@register_head("hybrid", branches=HybridHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> HybridHead:
    return HybridHead(
        inputs.dim, inputs.joint_dim, *inputs.subwords, keywords=settings.keywords,
        parallel_layers=settings.parallel_layers, **keyword_settings(settings),
    )  # fmt: skip
