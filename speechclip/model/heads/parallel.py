"""The parallel head: one [CLS], one transformer layer, one projection (Shih et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from speechclip.config import HeadConfig
from speechclip.model.dropout import Dropout
from speechclip.model.heads.attention import ClsAttention
from speechclip.model.heads.base import PARALLEL, Head, HeadInputs, HeadOutput, register_head
from speechclip.model.heads.pooled import PooledHead
from speechclip.model.heads.summed import SummedHead
from speechclip.model.heads.transformer_layer import TransformerLayer


class ParallelHead(TransformerLayer, Head):
    """[CLS] and the frames pass a post-norm transformer layer (GELU, feed-forward 4d), a LayerNorm and a Linear.

    The [CLS] vector starts from N(0, 1), as in the published code, unless ``cls_std`` changes the standard deviation.

    Args:
        dim: d, width of the speech features.
        joint_dim: width of the CLIP embedding.
        heads: number of attention heads.
        dropout: probability of dropout in the attention and the feed-forward layers.
        input_dropout: probability of dropout of the frames.
        cls_std: standard deviation of the first [CLS] vector.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL,)

    def __init__(
        self, dim: int, joint_dim: int, *, heads: int, dropout: float, input_dropout: float = 0.0,
        cls_std: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, dim) * cls_std)
        self.attention = ClsAttention(dim, heads, dropout)
        self.add_layer(dim, dropout)
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, joint_dim)
        self.input_dropout = Dropout(input_dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute one embedding per utterance. See :class:`Head`."""
        attended, weights = self.attention(self.cls, self.input_dropout(frames), padding)
        state = self.rest_of_layer(self.cls, attended)[:, 0]
        return HeadOutput(self.projection(self.norm(state)), None, attention=weights)

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the layer's output at the frames, before the additional LayerNorm: [B, T, d]."""
        tokens = torch.cat([self.cls.expand(len(frames), -1, -1), frames], dim=1)
        return self.rest_of_layer(tokens, self.attention.everywhere(self.cls, frames, padding))[:, 1:]


@register_head("parallel", branches=ParallelHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> Head:
    parts: list[Head] = []
    if settings.pooling in ("cls", "both"):
        parts.append(
            ParallelHead(
                inputs.dim, inputs.joint_dim, heads=settings.attention_heads, dropout=settings.dropout,
                input_dropout=settings.input_dropout, cls_std=settings.cls_std,
            )
        )  # fmt: skip
    if settings.pooling in ("weights", "both"):
        stride, dropout = settings.joined_frames, settings.input_dropout
        parts.append(PooledHead(inputs.dim, inputs.joint_dim, stride=stride, dropout=dropout))
    return parts[0] if len(parts) == 1 else SummedHead(*parts)
