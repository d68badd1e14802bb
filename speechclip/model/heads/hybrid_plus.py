"""The hybrid+ head: a parallel branch, and keywords by integrate-and-fire (Wang et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from speechclip.config import HeadConfig
from speechclip.model.heads.base import CASCADED, PARALLEL, HeadInputs, HeadOutput, register_head
from speechclip.model.heads.cascaded_plus import CascadedPlusHead, build_cif
from speechclip.model.heads.keyword_head import keyword_settings, projection


class HybridPlusHead(CascadedPlusHead):
    """One [CLS] and the frames pass one attention block: the [CLS] becomes an embedding, segments become keywords.

    Args:
        dim, subword_embeddings, valid_mask, dropout, settings: see :class:`CascadedPlusHead`.
        joint_dim: width of the CLIP embedding.
        parallel_layers: number of linear layers from the [CLS] to the embedding, 1 or 2.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL, CASCADED)

    def __init__(
        self, dim: int, joint_dim: int, subword_embeddings: Tensor, valid_mask: Tensor, *, dropout: float,
        parallel_layers: int = 1, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, subword_embeddings, valid_mask, cls=1, dropout=dropout, **settings)
        self.parallel_projection = projection(dim, joint_dim, parallel_layers, dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute an embedding and the keywords of each utterance. See :class:`Head`."""
        states = self._block(frames, padding)
        return self._read_segments(states[:, 1:], frames, padding, self.parallel_projection(states[:, 0]))


@register_head("hybrid_plus", branches=HybridPlusHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> HybridPlusHead:
    return HybridPlusHead(
        inputs.dim, inputs.joint_dim, *inputs.subwords, cif=build_cif(settings.cif, inputs),
        parallel_layers=settings.parallel_layers, **keyword_settings(settings),
    )  # fmt: skip
