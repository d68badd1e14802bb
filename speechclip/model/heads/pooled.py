"""Pooled speech: joined frames, and weights over time for every dimension; an alternative to the parallel head's layer.

It is our addition, in neither paper. The sum over positions passes a LayerNorm and a Linear alone. So words add up, and
captions that are bags of words need few examples.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from speechclip.model.heads.base import PARALLEL, Head, HeadOutput
from speechclip.model.heads.joined_frames import JoinedFrames, join_frames, repeat_positions, spread


class PooledSpeech(nn.Module):
    """Joined frames, their weighted sum with weights of its own for every dimension, LayerNorm and Linear.

    Args:
        dim: d, width of the frames.
        joint_dim: J, width of the embedding.
        width: of the positions.
        stride: frames in a position.
        dropout: of the joined frames.
    """

    def __init__(self, dim: int, joint_dim: int, *, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.joined = JoinedFrames(dim, width, stride, dropout)
        self.weights, self.values = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.projection = nn.LayerNorm(width), nn.Linear(width, joint_dim)

    def pool(self, positions: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, J], not normalised, and the weights [B, S, width] of the positions.

        Args:
            positions: [B, S, width], of :class:`JoinedFrames`.
            padding: [B, S] bool.
        """
        weights = self.weights(positions).masked_fill(padding[:, :, None], float("-inf")).softmax(dim=1)
        pooled = (self.values(positions) * weights).sum(dim=1)
        return self.projection(self.norm(pooled)), weights


class PooledHead(Head):
    """The parallel head with ``pooling: weights``: :class:`PooledSpeech` in place of [CLS] and transformer layer.

    Args:
        dim: d, width of the speech features and of the positions.
        joint_dim: J, width of the CLIP embedding.
        stride: frames in a position.
        dropout: of the joined frames.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL,)

    def __init__(self, dim: int, joint_dim: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.stride = stride
        self.speech = PooledSpeech(dim, joint_dim, width=dim, stride=stride, dropout=dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute one embedding per utterance. See :class:`Head`. The attention is the mean over the dimensions."""
        embedding, weights = self.speech.pool(*self._positions(frames, padding))
        if self.training:
            return HeadOutput(embedding, None)
        return HeadOutput(embedding, None, attention=spread(weights.mean(dim=2)[:, None], padding, self.stride))

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the positions at their frames: [B, T, d]."""
        return repeat_positions(self._positions(frames, padding)[0], self.stride, frames.shape[1])

    def _positions(self, frames: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions [B, S, d] and those without a valid frame [B, S]."""
        joined, hidden = join_frames(frames, padding, self.stride)
        return self.speech.joined(joined, hidden), hidden
