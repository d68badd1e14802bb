"""Segments of an utterance that begin where the speech changes: at peaks of the change between frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def change_curve(frames: Tensor, padding: Tensor, window: int) -> Tensor:
    """Return the change of the speech at the start of every frame.

    The change is 1 - cosine of the mean of the ``window`` frames before and the mean of the ``window`` frames from this
    one on. A LayerNorm without parameters is applied to the frames first.

    Args:
        frames: [B, T, d].
        padding: [B, T] bool, True at frames that are padding.
        window: frames on each side.

    Returns:
        [B, T], in [0, 2]. It is 0 at frames with fewer than ``window`` valid frames on one side.
    """
    lengths = (~padding).sum(dim=1, keepdim=True)
    normal = nn.functional.layer_norm(frames.detach().float(), frames.shape[-1:])
    total = nn.functional.pad(normal.double().cumsum(dim=1), (0, 0, 1, 0))  # [B, T + 1, d]
    change = torch.zeros(padding.shape, dtype=total.dtype, device=frames.device)
    if frames.shape[1] < 2 * window:
        return change
    sums = total[:, window:] - total[:, :-window]  # sums[:, i] is of the frames i to i + window - 1
    cosines = nn.functional.cosine_similarity(sums[:, :-window], sums[:, window:], dim=2)
    change[:, window : window + cosines.shape[1]] = 1 - cosines
    at = torch.arange(padding.shape[1], device=frames.device)
    return change.masked_fill(at[None, :] > lengths - window, 0.0)


def change_points(change: Tensor, count: Tensor, distance: int) -> Tensor:
    """Return the starts of segments: the highest peaks of the change.

    A peak is the highest value among the ``distance`` frames on each side, and is above 0.

    Args:
        change: [B, T], see :func:`change_curve`.
        count: [B] int, the wanted number of segments. Fewer are returned if there are not enough peaks.
        distance: frames.

    Returns:
        [B, T] bool, True at the first frame of every segment but the first one.
    """
    highest = nn.functional.max_pool1d(change[:, None], 2 * distance + 1, stride=1, padding=distance)[:, 0]
    peaks = change.masked_fill((change < highest) | (change <= 0), 0.0)
    order = peaks.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < count[:, None] - 1) & (peaks > 0)


def scale_segments(alpha: Tensor, starts: Tensor) -> Tensor:
    """Scale weights so that they sum to 1 in every segment. Padding has weight 0 and keeps it.

    Args:
        alpha: [B, T].
        starts: [B, T] bool, see :func:`change_points`.
    """
    segment = starts.long().cumsum(dim=1)  # [B, T], number of the segment of each frame
    sums = torch.zeros_like(alpha).scatter_add(1, segment, alpha)
    return alpha / sums.clamp(min=torch.finfo(alpha.dtype).tiny).gather(1, segment)
