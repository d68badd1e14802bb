"""The parallel head: one [CLS], one transformer layer, one projection (Shih et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from speechclip.config import HeadConfig
from speechclip.model.heads.attention import ClsAttention
from speechclip.model.heads.base import PARALLEL, Head, HeadInputs, HeadOutput, register_head


class ParallelHead(Head):
    """[CLS] and the frames pass a post-norm transformer layer (GELU, feed-forward 4d), a LayerNorm and a Linear.

    The [CLS] vector starts from N(0, 1), as in the published code.

    Args:
        dim: d, width of the speech features.
        joint_dim: width of the CLIP embedding.
        heads: number of attention heads.
        dropout: probability of dropout in the attention and the feed-forward layers.
        input_dropout: probability of dropout of the frames.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL,)

    def __init__(self, dim: int, joint_dim: int, *, heads: int, dropout: float, input_dropout: float = 0.0) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, dim))
        self.attention = ClsAttention(dim, heads, dropout)
        self.norm_attention = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, joint_dim)
        self.dropout = nn.Dropout(dropout)
        self.input_dropout = nn.Dropout(input_dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute one embedding per utterance. See :class:`Head`."""
        attended, weights = self.attention(self.cls, self.input_dropout(frames), padding)
        state = self._rest_of_layer(self.cls, attended)[:, 0]
        return HeadOutput(self.projection(self.norm(state)), None, attention=weights)

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the layer's output at the frames, before the additional LayerNorm: [B, T, d]."""
        tokens = torch.cat([self.cls.expand(len(frames), -1, -1), frames], dim=1)
        return self._rest_of_layer(tokens, self.attention.everywhere(self.cls, frames, padding))[:, 1:]

    def _rest_of_layer(self, tokens: Tensor, attended: Tensor) -> Tensor:
        x = self.norm_attention(tokens + self.dropout(attended))
        normed: Tensor = self.norm_feed_forward(x + self.feed_forward(x))
        return normed


@register_head("parallel", branches=ParallelHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> ParallelHead:
    return ParallelHead(
        inputs.dim, inputs.joint_dim, heads=settings.attention_heads, dropout=settings.dropout,
        input_dropout=settings.input_dropout,
    )  # fmt: skip
