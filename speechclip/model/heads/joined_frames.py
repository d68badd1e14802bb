"""Joins neighbouring frames to positions that see about a syllable, before attention over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechclip.model.dropout import Dropout

_CONTEXT = 3  # positions that the convolution sees


def in_runs(values: Tensor, stride: int, fill: float = 0.0) -> Tensor:
    """Return values [B, T, ...] of frames as runs [B, S, stride, ...] with S = ceil(T / stride).

    Args:
        values: one for each frame.
        stride: frames in a run.
        fill: of the frames that the last run lacks.
    """
    missing = -values.shape[1] % stride
    padded = nn.functional.pad(values, (0, 0) * (values.ndim - 2) + (0, missing), value=fill)
    return padded.unflatten(1, (-1, stride))


def join_frames(frames: Tensor, padding: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Join runs of ``stride`` frames.

    Args:
        frames: [B, T, d].
        padding: [B, T] bool, True at frames that are padding.
        stride: frames in a position.

    Returns:
        [B, S, stride * d] with S = ceil(T / stride), zero at padding, and [B, S] bool, True at positions without a
        valid frame.
    """
    kept = frames.masked_fill(padding[:, :, None], 0)
    return in_runs(kept, stride).flatten(2), in_runs(padding, stride, fill=True).all(dim=2)


class JoinedFrames(nn.Module):
    """Joined frames pass dropout, a Linear, a LayerNorm and a residual convolution over three positions.

    Attention alone sees one frame of 20 ms at a time. This is our addition, it is in neither paper.

    Args:
        dim: d, width of the frames.
        width: of the positions.
        stride: frames in a position.
        dropout: of the joined frames.
    """

    def __init__(self, dim: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.projection, self.norm = nn.Linear(stride * dim, width), nn.LayerNorm(width)
        self.context = nn.Conv1d(width, width, _CONTEXT, padding=_CONTEXT // 2)

    def forward(self, joined: Tensor, padding: Tensor) -> Tensor:
        """Return positions [B, S, width] for the result of :func:`join_frames`."""
        positions = self.norm(self.projection(self.dropout(joined))).masked_fill(padding[:, :, None], 0)
        near: Tensor = positions + nn.functional.gelu(self.context(positions.transpose(1, 2))).transpose(1, 2)
        return near


def spread(weights: Tensor, padding: Tensor, stride: int) -> Tensor:
    """Return weights [B, Q, S] of positions as weights [B, Q, T] of frames: valid frames share that of their position.

    Args:
        weights: of positions.
        padding: [B, T] bool, of the frames.
        stride: frames in a position.
    """
    valid = in_runs(~padding, stride).to(weights.dtype)  # [B, S, stride]
    shares = valid / valid.sum(dim=2, keepdim=True).clamp(min=1)
    return (weights[..., None] * shares[:, None]).flatten(2)[..., : padding.shape[1]]


def repeat_positions(positions: Tensor, stride: int, frames: int) -> Tensor:
    """Return positions [B, S, w] at the frames: [B, T, w].

    Args:
        positions: of joined frames.
        stride: frames in a position.
        frames: T.
    """
    return torch.repeat_interleave(positions, stride, dim=1)[:, :frames]
