"""When a keyword was said: the stretch of frames its attention rests on."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from speechclip.common.constants import FRAME_SECONDS
from speechclip.model.heads.base import Keywords


def attention_span(weights: ArrayLike, frame_seconds: float, mass: float = 0.5) -> tuple[float, float]:
    """Start and end in seconds of the shortest run of frames that holds ``mass`` of the attention weights [T].

    The earliest of equally short ones; the weights need not sum to one. Raises ValueError for an empty, negative or
    non-finite input, a sum of zero, and a mass outside (0, 1].
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
        raise ValueError("attention: finite, non-negative weights [T] with a positive sum are needed")
    if not 0 < mass <= 1:
        raise ValueError(f"mass is {mass}; it has to be in (0, 1]")
    held = np.concatenate([[0.0], np.cumsum(w)])
    wanted = mass * held[-1] * (1 - 1e-9)  # sums that differ in rounding alone count as equal
    last = np.searchsorted(held, held[:-1] + wanted)  # where a run from each frame on holds enough, or past the end
    frames = np.where(last < len(held), last - np.arange(len(w)), len(held))
    first = int(frames.argmin())
    return first * frame_seconds, int(last[first]) * frame_seconds


def keyword_spans(keywords: Keywords, index: int, frames: int, mass: float = 0.5) -> list[tuple[float, float]]:
    """(start, end) in seconds of each keyword of utterance ``index`` of a batch, which has ``frames`` frames.

    The head's segments, or the spans that hold ``mass`` of the attention.
    """
    count = int(keywords.mask[index].sum())
    if keywords.segments is not None:
        times = (keywords.segments[index, :count].double() * FRAME_SECONDS).tolist()
        return [(start, end) for start, end in times]
    assert keywords.attention is not None, "weights are there in evaluation only"
    weights = keywords.attention[index, :count, :frames].float().cpu().numpy()
    return [attention_span(row, FRAME_SECONDS, mass) for row in weights]
