"""The subwords nearest to keyword vectors, by cosine: one pass over the table for everything that is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK_SCORES = 1 << 24  # cosines held at a time: 64 MiB in single precision

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Subwords:
    """The (reduced) subword table: embeddings [V, D], the token id of every row [V], and the ids that are not content.

    special_ids are padding, start and end of text; stop_ids what `stopwords.stop_word_ids` names.
    """

    embeddings: Floats
    ids: Ints
    special_ids: frozenset[int]
    stop_ids: frozenset[int]

    def rows(self, ids: Iterable[int]) -> Bools:
        """Mask [V] of the rows whose id is among ids."""
        return np.isin(self.ids, np.fromiter(ids, dtype=np.int64))

    @property
    def special(self) -> Bools:
        """Mask [V] of the special rows."""
        return self.rows(self.special_ids)

    @property
    def no_content(self) -> Bools:
        """Mask [V] of the special rows and the stop words."""
        return self.rows(self.special_ids | self.stop_ids)


class Near(NamedTuple):
    """rows: [N, k] of the table, best first. cosines: [N, k]."""

    rows: Ints
    cosines: Floats


class Search(NamedTuple):
    """Of N vectors: the nearest rows under each exclusion, and of each set of rows the nearest one.

    near: one `Near` for each exclusion. best: for each set the nearest of its rows, [N] (-1: the set is empty) and the
    cosine, [N] (NaN there).
    """

    near: list[Near]
    best: dict[str, tuple[Ints, Floats]]


def search(
    z: ArrayLike,
    table: ArrayLike,
    wanted: Sequence[tuple[int, Bools]],
    sets: Mapping[str, tuple[Ints, Ints]] | None = None,
) -> Search:
    """The rows of table [V, D] with the highest cosine to each vector of z [N, D], and the nearest of its own set.

    wanted: (k, exclude [V]) of each exclusion: the k nearest rows, best first, without those where exclude is true; of
    equal rows the first wins. sets: by name, rows padded with -1 [S, G], and which of the S sets each vector has, [N].
    A matrix product for each block of vectors. Raises ValueError for values that are not finite and for fewer than k
    rows.
    """
    vectors, rows = finite(z, "z"), finite(table, "table")
    for k, exclude in wanted:
        left = int((~exclude).sum())
        if k > left:
            raise ValueError(f"{k} neighbours asked for, {left} subwords are left")
    flat, target = unit_rows(vectors), unit_rows(rows).T  # [N, D], [D, V]
    near = [Near(np.empty((len(flat), k), np.int64), np.empty((len(flat), k), flat.dtype)) for k, _ in wanted]
    own = sets or {}
    best = {name: (np.empty(len(flat), np.int64), np.empty(len(flat), flat.dtype)) for name in own}
    step = max(1, BLOCK_SCORES // target.shape[1])
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        scores = flat[part] @ target  # [b, V]
        for name, (members, which) in own.items():
            best[name][0][part], best[name][1][part] = best_of(scores, members[which[part]])
        for found, (k, exclude) in zip(near, wanted, strict=True):
            kept = scores[:, exclude]  # a copy
            scores[:, exclude] = -np.inf
            found.rows[part], found.cosines[part] = largest(scores, k)
            scores[:, exclude] = kept
    return Search(near, best)


def best_of(scores: Floats, members: Ints) -> tuple[Ints, Floats]:
    """Of each line of scores [b, V] the best of its members [b, G], and its score; -1 and NaN where it has none.

    One line of scores, [1, V], serves all members.
    """
    if not members.shape[1]:
        return np.full(len(members), -1), np.full(len(members), np.nan, scores.dtype)
    scores = np.broadcast_to(scores, (len(members), scores.shape[1]))
    mine = np.where(members >= 0, np.take_along_axis(scores, members.clip(0), axis=1), -np.inf)
    at = mine.argmax(axis=1)[:, None]
    value = np.take_along_axis(mine, at, axis=1)[:, 0]
    return np.take_along_axis(members, at, axis=1)[:, 0], np.where(np.isneginf(value), np.nan, value)


def largest(scores: Floats, k: int) -> tuple[Ints, Floats]:
    """Columns and values, [b, k], of the k largest of each line [b, V], best first; of equal ones the first column.

    k: from 0 to V.
    """
    if k == 0:
        return np.empty((len(scores), 0), np.int64), scores[:, :0]
    if k == 1:
        best = scores.argmax(axis=1)[:, None]
        return best, np.take_along_axis(scores, best, axis=1)
    place = scores.shape[1] - k
    least = np.partition(scores, place, axis=1)[:, place]  # the k-th largest of each line; ties may give more than k
    line, column = np.nonzero(scores >= least[:, None])
    value = scores[line, column]
    order = np.lexsort((column, -value, line))
    begin = np.searchsorted(line, np.arange(len(scores)))  # lines stay in their places
    chosen = order[begin[:, None] + np.arange(k)]
    return column[chosen], value[chosen]


def finite(values: ArrayLike, name: str) -> Floats:
    """A finite floating-point array in at least single precision. Raises ValueError."""
    array = np.asarray(values)
    array = array.astype(np.result_type(array, np.float32), copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return array


def unit_rows(rows: Floats) -> Floats:
    """Rows [N, D] of length one; rows of zeros stay."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)
