"""The time span of a keyword: the frames that hold most of its attention."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from speechclip.common.constants import FRAME_SECONDS
from speechclip.model.heads.base import Keywords


def attention_span(weights: ArrayLike, frame_seconds: float, mass: float = 0.5) -> tuple[float, float]:
    """Return the shortest run of frames that holds a share of the attention; the earliest of equally short runs.

    Args:
        weights: [T], attention weights. They need not sum to one.
        frame_seconds: length of a frame in seconds.
        mass: the share of the attention, in (0, 1].

    Returns:
        Start and end in seconds.

    Raises:
        ValueError: the weights are empty, negative, not finite, or sum to zero.
        ValueError: ``mass`` is outside (0, 1].
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
        raise ValueError("weights: must be a vector of finite, non-negative numbers with a positive sum")
    if not 0 < mass <= 1:
        raise ValueError(f"mass: {mass}; must be above 0 and at most 1")
    held = np.concatenate([[0.0], np.cumsum(w)])
    wanted = mass * held[-1] * (1 - 1e-9)  # sums that differ only by rounding count as equal
    # The end of the run that starts at each frame; beyond the utterance if the rest holds too little.
    last = np.searchsorted(held, held[:-1] + wanted)
    frames = np.where(last < len(held), last - np.arange(len(w)), len(held))
    first = int(frames.argmin())
    return first * frame_seconds, int(last[first]) * frame_seconds


def keyword_spans(keywords: Keywords, index: int, frames: int, mass: float = 0.5) -> list[tuple[float, float]]:
    """Return (start, end) in seconds of each keyword of an utterance.

    Args:
        keywords: the keywords of a batch. If the head has segments, these are the spans.
        index: the utterance's place in the batch.
        frames: number of frames of the utterance.
        mass: see :func:`attention_span`.
    """
    count = int(keywords.mask[index].sum())
    if keywords.segments is not None:
        times = (keywords.segments[index, :count].double() * FRAME_SECONDS).tolist()
        return [(start, end) for start, end in times]
    assert keywords.attention is not None, "attention is computed in evaluation only"
    weights = keywords.attention[index, :count, :frames].float().cpu().numpy()
    return [attention_span(row, FRAME_SECONDS, mass) for row in weights]
