"""Which retrieval results to show: the best, typical ones and the worst, in both directions, always the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.neighbours import largest
from speechclip.eval.ranking import first_hit_ranks

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]
KINDS = ("best", "typical", "worst")


@dataclass(frozen=True)
class Example:
    """A query with what it found.

    query: its row. rank: of the truth, from 1. found: rows of the gallery, best first. cosines: theirs. truth: the row
    of the best-placed right answer, truth_cosine its cosine.
    """

    query: int
    rank: int
    found: tuple[int, ...]
    cosines: tuple[float, ...]
    truth: int
    truth_cosine: float


def examples(
    queries: Floats, gallery: Floats, query_groups: Ints, gallery_groups: Ints, each: int = 3, shown: int = 5
) -> dict[str, list[Example]]:
    """``each`` examples of every kind with the first ``shown`` items found, by dot product.

    queries [Q, D], gallery [G, D] of length one; an item is right when its group is the query's. Queries are ordered by
    the rank of the truth and, where ranks are equal, by its cosine: the best come first, the worst last, the typical
    are those around the median. No group is shown twice.
    """
    ranks = first_hit_ranks(queries, gallery, query_groups, gallery_groups)
    truth, cosine = _truths(queries, gallery, query_groups, gallery_groups)
    order = np.lexsort((-cosine, ranks))
    middle = np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")
    taken: set[int] = set()
    chosen: dict[str, list[Example]] = {}
    for kind, candidates in (("best", order), ("worst", order[::-1]), ("typical", order[middle])):
        rows = _distinct(candidates, query_groups, each, taken)
        if kind == "typical":
            rows.sort(key=lambda row: (ranks[row], -cosine[row]))
        chosen[kind] = [
            _example(row, int(ranks[row]), queries[row] @ gallery.T, int(truth[row]), shown) for row in rows
        ]
    return {kind: chosen[kind] for kind in KINDS}


def top(queries: Floats, gallery: Floats, shown: int) -> tuple[Ints, Floats]:
    """Rows [Q, shown] of the gallery with the highest dot products, best first, and these."""
    count = min(shown, len(gallery))
    parts = [largest(queries[at : at + 256] @ gallery.T, count) for at in range(0, len(queries), 256)]
    found, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found, scores


def _example(row: int, rank: int, scores: Floats, truth: int, shown: int) -> Example:
    found, cosines = (line[0].tolist() for line in largest(scores[None], min(shown, len(scores))))
    return Example(row, rank, tuple(found), tuple(cosines), truth, float(scores[truth]))


def _truths(queries: Floats, gallery: Floats, query_groups: Ints, gallery_groups: Ints) -> tuple[Ints, Floats]:
    """The best-placed right answer of every query and its cosine."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(gallery_groups.tolist()):
        members.setdefault(group, []).append(row)
    truth, cosine = np.empty(len(queries), dtype=np.int64), np.empty(len(queries))
    for row, group in enumerate(query_groups.tolist()):
        scores = gallery[members[group]] @ queries[row]
        best = int(scores.argmax())
        truth[row], cosine[row] = members[group][best], scores[best]
    return truth, cosine


def _distinct(candidates: Ints, groups: Ints, count: int, taken: set[int]) -> list[int]:
    """The first candidates whose group is not taken yet."""
    rows: list[int] = []
    for row in candidates.tolist():
        if len(rows) == count:
            break
        if int(groups[row]) not in taken:
            taken.add(int(groups[row]))
            rows.append(row)
    return rows
