"""The choice of retrieval examples: the best, typical and worst ones. It is deterministic."""

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
    """A query and its results.

    Attributes:
        query: row of the query.
        rank: rank of the first right item, from 1.
        found: rows of the gallery, best first.
        cosines: their cosines.
        truth: row of the first right item.
        truth_cosine: its cosine.
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
    """Choose examples of every kind.

    The queries are sorted by the rank of the first right item, and equal ranks by its cosine. The best examples are at
    the start, the worst at the end, and the typical ones around the median. No group is shown twice.

    Args:
        queries: [Q, D], L2-normalised.
        gallery: [G, D], L2-normalised.
        query_groups: [Q]. An item of the gallery is right if it has the group of the query.
        gallery_groups: [G].
        each: number of examples of every kind.
        shown: number of results per example.
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
    """Return the rows [Q, shown] of the gallery with the highest dot products, best first, and the dot products."""
    count = min(shown, len(gallery))
    parts = [largest(queries[at : at + 256] @ gallery.T, count) for at in range(0, len(queries), 256)]
    found, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found, scores


def _example(row: int, rank: int, scores: Floats, truth: int, shown: int) -> Example:
    found, cosines = (line[0].tolist() for line in largest(scores[None], min(shown, len(scores))))
    return Example(row, rank, tuple(found), tuple(cosines), truth, float(scores[truth]))


def _truths(queries: Floats, gallery: Floats, query_groups: Ints, gallery_groups: Ints) -> tuple[Ints, Floats]:
    """Return the first right item of every query, [Q], and its cosine, [Q]."""
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
    """Return the first candidates whose group is not in ``taken``, and add their groups to it."""
    rows: list[int] = []
    for row in candidates.tolist():
        if len(rows) == count:
            break
        if int(groups[row]) not in taken:
            taken.add(int(groups[row]))
            rows.append(row)
    return rows
