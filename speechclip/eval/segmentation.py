"""Keyword times as word boundaries: precision, recall, F1, over-segmentation and R-value.

Counts are summed over utterances before they are divided. An utterance's own start and end are no boundaries: nobody
has to find them. The R-value (Räsänen et al. 2009) is 100 for a perfect segmentation and, other than F1, falls when
recall is bought with boundaries everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Pairs = Sequence[Sequence[float]]  # (start, end) in seconds
SAME = 1e-3  # seconds; times closer than this are one boundary


def inner_boundaries(spans: Pairs) -> list[float]:
    """Starts and ends in seconds, sorted, each once, without the first and the last."""
    times: list[float] = []
    for time in sorted(time for span in spans for time in span):
        if not times or time - times[-1] > SAME:
            times.append(time)
    return times[1:-1]


def matches(found: Sequence[float], true: Sequence[float], tolerance: float) -> int:
    """The most pairs (found, true) no further apart than the tolerance, with no time in two pairs. Both sorted."""
    pairs = at = 0
    for time in true:
        while at < len(found) and found[at] < time - tolerance - 1e-9:
            at += 1
        if at < len(found) and found[at] <= time + tolerance + 1e-9:
            pairs, at = pairs + 1, at + 1
    return pairs


def boundary_measures(hits: int, found: int, true: int) -> dict[str, float]:
    """``precision``, ``recall``, ``f1``, ``over_segmentation`` and ``r_value`` in percent, of summed counts.

    over_segmentation: by how much there are more boundaries than there should be, 0 is right. Raises ValueError
    where there is no true boundary.
    """
    if not true:
        raise ValueError("no word boundary to find")
    precision, recall = hits / found if found else 0.0, hits / true
    over = found / true - 1
    both = precision + recall
    ideal = math.hypot(1 - recall, over)  # distance from the perfect point
    aside = (recall - 1 - over) / math.sqrt(2)  # and from the line on which more hits cost no more boundaries
    measures = {
        "precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0,
        "over_segmentation": over, "r_value": 1 - (ideal + abs(aside)) / 2,
    }  # fmt: skip
    return {name: 100 * value for name, value in measures.items()}


def segmentation_report(spans: Sequence[Pairs], words: Sequence[Pairs], tolerance: float) -> dict[str, Any]:
    """Scores of the keywords' times against the words', and of as many evenly spaced boundaries ("uniform").

    Args:
        spans: of each utterance, (start, end) of its keywords in seconds. words: the same of its words, at least one.
        tolerance: seconds.
    Returns:
        what :func:`boundary_measures` gives, with "tolerance", "n_found", "n_true", "n_utterances" and "uniform".
    """
    counts, even = [0, 0, 0], [0, 0, 0]
    for mine, theirs in zip(spans, words, strict=True):
        found, true = inner_boundaries(mine), inner_boundaries(theirs)
        begin, end = min(start for start, _ in theirs), max(stop for _, stop in theirs)
        step = (end - begin) / (len(found) + 1)
        spaced = [begin + step * (number + 1) for number in range(len(found))]
        for total, times in ((counts, found), (even, spaced)):
            for at, value in enumerate((matches(times, true, tolerance), len(times), len(true))):
                total[at] += value
    return {
        **boundary_measures(counts[0], counts[1], counts[2]),
        "tolerance": tolerance, "n_found": counts[1], "n_true": counts[2], "n_utterances": len(spans),
        "uniform": boundary_measures(even[0], even[1], even[2]),
    }  # fmt: skip
