"""Keyword times as word boundaries: precision, recall, F1, over-segmentation and R-value.

Counts are summed over utterances before they are divided. An utterance lasts from the start of its first word to the
end of its last word. These two times are given, so they do not count as boundaries. Keyword times outside the
utterance, or within the tolerance of its ends, do not count either. All other starts and ends of keywords count. A
chain of segments that begins before the first word has no boundary at its start. The R-value (Räsänen et al. 2009) is
100 for a perfect segmentation. Unlike F1, it falls if recall is reached with boundaries everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.bootstrap import Bootstrap, interval

Pairs = Sequence[Sequence[float]]  # (start, end) in seconds
Ints = NDArray[np.int64]
SAME = 1e-3  # seconds; closer times are one boundary
EDGE = 1e-9  # seconds; allows for rounding of a distance that equals the tolerance
TOLERANCES = (0.02, 0.05)  # seconds, the two usual ones


def word_boundaries(words: Pairs) -> list[float]:
    """Return the distinct starts and ends of words in seconds, sorted, without the first and the last."""
    return _times(words)[1:-1]


def keyword_boundaries(spans: Pairs, words: Pairs, tolerance: float) -> list[float]:
    """Return the distinct starts and ends of keywords inside the utterance, in seconds, sorted.

    A time is inside if it is further than the tolerance from the start and the end of the utterance.
    """
    begin, end = _extent(words)
    margin = tolerance + EDGE
    return [time for time in _times(spans) if begin + margin < time < end - margin]


def _times(spans: Pairs) -> list[float]:
    """Return the distinct starts and ends, sorted."""
    times: list[float] = []
    for time in sorted(time for span in spans for time in span):
        if not times or time - times[-1] > SAME:
            times.append(time)
    return times


def matches(found: Sequence[float], true: Sequence[float], tolerance: float) -> int:
    """Return the largest number of pairs (found, true) within the tolerance. A time is in one pair. Both are sorted."""
    pairs = at = 0
    for time in true:
        while at < len(found) and found[at] < time - tolerance - EDGE:
            at += 1
        if at < len(found) and found[at] <= time + tolerance + EDGE:
            pairs, at = pairs + 1, at + 1
    return pairs


def boundary_measures(hits: float, found: float, true: float) -> dict[str, float]:
    """Return ``precision``, ``recall``, ``f1``, ``over_segmentation`` and ``r_value`` in percent.

    Args:
        hits: number of matched boundaries.
        found: number of boundaries found. Over-segmentation is found / true - 1.
        true: number of true boundaries.
    Raises:
        ValueError: true is 0.
    """
    if not true:
        raise ValueError("no word boundary to find")
    precision, recall = hits / found if found else 0.0, hits / true
    over = found / true - 1
    both = precision + recall
    ideal = math.hypot(1 - recall, over)  # distance from the perfect point
    slant = (recall - 1 - over) / math.sqrt(2)  # distance from the line where each new boundary is a hit
    measures = {
        "precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0,
        "over_segmentation": over, "r_value": 1 - (ideal + abs(slant)) / 2,
    }  # fmt: skip
    return {name: 100 * value for name, value in measures.items()}


def segmentation_report(
    spans: Sequence[Pairs],
    words: Sequence[Pairs],
    tolerance: float,
    shuffled_index: Sequence[int] | None = None,
    bootstrap: Bootstrap | None = None,
) -> dict[str, Any]:
    """Score the keyword times against the word times.

    Args:
        spans: (start, end) of the keywords of each utterance, in seconds.
        words: (start, end) of its words, at least one.
        tolerance: seconds.
        shuffled_index: an utterance of another image for each utterance; None for no control.
        bootstrap: resamples of these utterances; None for no intervals.
    Returns:
        the measures of :func:`boundary_measures`, "ci95", "tolerance", "n_found", "n_true", "n_utterances".
        "tolerances": the measures for each of `TOLERANCES`.
        "uniform": the measures of the same number of boundaries, evenly spaced.
        "shuffled_speech": the measures of the keywords of ``shuffled_index``, stretched to the same length.
    """
    counts = _counts(spans, words, tolerance)
    total = counts.sum(axis=0).tolist()
    report: dict[str, Any] = {
        **boundary_measures(*total),
        "tolerance": tolerance, "n_found": total[1], "n_true": total[2], "n_utterances": len(spans),
        "tolerances": {
            f"{value:g}": boundary_measures(*_counts(spans, words, value).sum(axis=0).tolist()) for value in TOLERANCES
        },
        "uniform": _measures_of(
            [_evenly(*pair, tolerance) for pair in zip(spans, words, strict=True)], words, tolerance
        ),
    }  # fmt: skip
    if shuffled_index is not None:
        moved = [_stretched(spans[other], words[other], words[own]) for own, other in enumerate(shuffled_index)]
        found = [keyword_boundaries(*pair, tolerance) for pair in zip(moved, words, strict=True)]
        report["shuffled_speech"] = _measures_of(found, words, tolerance)
    if bootstrap is not None:
        drawn = [boundary_measures(*sums) for sums in bootstrap.sums(counts).tolist() if sums[2]]
        low, high = interval(np.array([list(measures.values()) for measures in drawn]))
        report["ci95"] = {name: [float(low[at]), float(high[at])] for at, name in enumerate(drawn[0])}
    return report


def _counts(spans: Sequence[Pairs], words: Sequence[Pairs], tolerance: float) -> Ints:
    """Return [U, 3]: matches, found and true boundaries of each utterance."""
    rows = [
        _count(keyword_boundaries(own, spoken, tolerance), spoken, tolerance)
        for own, spoken in zip(spans, words, strict=True)
    ]
    return np.array(rows, dtype=np.int64)


def _count(found: Sequence[float], words: Pairs, tolerance: float) -> tuple[int, int, int]:
    true = word_boundaries(words)
    return matches(found, true, tolerance), len(found), len(true)


def _measures_of(found: Sequence[Sequence[float]], words: Sequence[Pairs], tolerance: float) -> dict[str, float]:
    rows = [_count(times, spoken, tolerance) for times, spoken in zip(found, words, strict=True)]
    return boundary_measures(*np.sum(rows, axis=0).tolist())


def _extent(words: Pairs) -> tuple[float, float]:
    return min(start for start, _ in words), max(end for _, end in words)


def _evenly(spans: Pairs, words: Pairs, tolerance: float) -> list[float]:
    """Return evenly spaced boundaries, the same number that the spans have."""
    number = len(keyword_boundaries(spans, words, tolerance))
    begin, end = _extent(words)
    return [begin + (end - begin) / (number + 1) * (at + 1) for at in range(number)]


def _stretched(spans: Pairs, words: Pairs, onto: Pairs) -> list[tuple[float, float]]:
    """Stretch the spans of an utterance from the extent of its words to the extent of another utterance's words."""
    (begin, end), (to_begin, to_end) = _extent(words), _extent(onto)
    factor = (to_end - to_begin) / (end - begin) if end > begin else 1.0
    return [(to_begin + (a - begin) * factor, to_begin + (b - begin) * factor) for a, b in spans]
