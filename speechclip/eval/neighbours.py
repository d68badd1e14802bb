"""The subwords nearest to keyword vectors, by cosine. One pass over the table serves all queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK_SCORES = 1 << 24  # cosines in memory at a time: 64 MiB in single precision

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Subwords:
    """The (reduced) table of subword embeddings.

    Attributes:
        embeddings: [V, D].
        ids: the token id of every row, [V].
        special_ids: padding, start and end of text.
        stop_ids: the ids of :func:`speechclip.eval.stopwords.stop_word_ids`.
    """

    embeddings: Floats
    ids: Ints
    special_ids: frozenset[int]
    stop_ids: frozenset[int]

    def rows(self, ids: Iterable[int]) -> Bools:
        """Return the mask [V] of the rows whose id is in ``ids``."""
        return np.isin(self.ids, np.fromiter(ids, dtype=np.int64))

    @property
    def special(self) -> Bools:
        """The mask [V] of the special rows."""
        return self.rows(self.special_ids)

    @property
    def no_content(self) -> Bools:
        """The mask [V] of the special rows and the stop words."""
        return self.rows(self.special_ids | self.stop_ids)


class Neighbours(NamedTuple):
    """The k nearest rows of the table for each of N vectors.

    Attributes:
        rows: row numbers, best first, [N, k].
        cosines: [N, k].
    """

    rows: Ints
    cosines: Floats


class SearchResult(NamedTuple):
    """The result of :func:`search` for N vectors.

    Attributes:
        nearest: the nearest rows, for each exclusion.
        best: by name, the nearest row of the vector's set, [N], and its cosine, [N]. For empty sets -1 and NaN.
    """

    nearest: list[Neighbours]
    best: dict[str, tuple[Ints, Floats]]


def search(
    z: ArrayLike,
    table: ArrayLike,
    wanted: Sequence[tuple[int, Bools]],
    sets: Mapping[str, tuple[Ints, Ints]] | None = None,
) -> SearchResult:
    """Find the rows of a table with the highest cosine to each vector, and the best row of the vector's own set.

    It computes one matrix product for each block of vectors. Of equal rows the first wins.

    Args:
        z: vectors [N, D].
        table: rows [V, D].
        wanted: (k, exclude [V]) for each exclusion: the k nearest rows without those that ``exclude`` marks.
        sets: by name, S sets of rows padded with -1, [S, G], and the set of each vector, [N].
    Raises:
        ValueError: values that are not finite, or fewer than k rows are left.
    """
    vectors, rows = finite(z, "z"), finite(table, "table")
    for k, exclude in wanted:
        left = int((~exclude).sum())
        if k > left:
            raise ValueError(f"{k} neighbours are needed, {left} subwords are left")
    flat, target = unit_rows(vectors), unit_rows(rows).T  # [N, D], [D, V]
    nearest = [Neighbours(np.empty((len(flat), k), np.int64), np.empty((len(flat), k), flat.dtype)) for k, _ in wanted]
    own_sets = sets or {}
    best = {name: (np.empty(len(flat), np.int64), np.empty(len(flat), flat.dtype)) for name in own_sets}
    step = max(1, BLOCK_SCORES // target.shape[1])
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        scores = flat[part] @ target  # [b, V]
        for name, (members, which) in own_sets.items():
            best[name][0][part], best[name][1][part] = best_of(scores, members[which[part]])
        for found, (k, exclude) in zip(nearest, wanted, strict=True):
            kept = scores[:, exclude]  # a copy
            scores[:, exclude] = -np.inf
            found.rows[part], found.cosines[part] = largest(scores, k)
            scores[:, exclude] = kept
    return SearchResult(nearest, best)


def best_of(scores: Floats, members: Ints) -> tuple[Ints, Floats]:
    """Find the best member of each row of scores.

    Args:
        scores: [b, V], or one row for all, [1, V].
        members: columns padded with -1, [b, G].
    Returns:
        the best column, [b], and its score, [b]. For rows without members -1 and NaN.
    """
    if not members.shape[1]:
        return np.full(len(members), -1), np.full(len(members), np.nan, scores.dtype)
    scores = np.broadcast_to(scores, (len(members), scores.shape[1]))
    own = np.where(members >= 0, np.take_along_axis(scores, members.clip(0), axis=1), -np.inf)
    at = own.argmax(axis=1)[:, None]
    value = np.take_along_axis(own, at, axis=1)[:, 0]
    return np.take_along_axis(members, at, axis=1)[:, 0], np.where(np.isneginf(value), np.nan, value)


def largest(scores: Floats, k: int) -> tuple[Ints, Floats]:
    """Find the k largest values of each row, best first. Of equal values the first column wins.

    Args:
        scores: [b, V].
        k: from 0 to V.
    Returns:
        columns and values, [b, k] each.
    """
    if k == 0:
        return np.empty((len(scores), 0), np.int64), scores[:, :0]
    if k == 1:
        best = scores.argmax(axis=1)[:, None]
        return best, np.take_along_axis(scores, best, axis=1)
    place = scores.shape[1] - k
    least = np.partition(scores, place, axis=1)[:, place]  # the k-th largest of each row; ties may give more than k
    line, column = np.nonzero(scores >= least[:, None])
    value = scores[line, column]
    order = np.lexsort((column, -value, line))
    begin = np.searchsorted(line, np.arange(len(scores)))  # lexsort keeps the rows in order
    chosen = order[begin[:, None] + np.arange(k)]
    return column[chosen], value[chosen]


def finite(values: ArrayLike, name: str) -> Floats:
    """Return a floating-point array in at least single precision.

    Raises:
        ValueError: a value is not finite.
    """
    array = np.asarray(values)
    array = array.astype(np.result_type(array, np.float32), copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinity")
    return array


def unit_rows(rows: Floats) -> Floats:
    """Scale rows [N, D] to length one. Zero rows stay zero."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)
