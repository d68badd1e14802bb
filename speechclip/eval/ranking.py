"""Ranks of retrieval: the best-placed relevant item of every query, without sorting and without holding all scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from speechclip.model.encoders.kernels.linear import linear

BLOCK_SCORES = 1 << 22  # scores held at a time: 16 MiB in single precision
BLOCK_ITEMS = 64  # gallery items compared at a time where scores lie by item

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def first_hit_ranks(
    queries: ArrayLike, gallery: ArrayLike, query_groups: ArrayLike, gallery_groups: ArrayLike, block: int | None = None
) -> Ints:
    """Rank, from 1, of the best-placed relevant gallery item of every query, by dot product.

    queries [Q, D], gallery [G, D], query_groups [Q] or [Q, C], gallery_groups [G] or [G, C]. At most ``block`` queries
    are scored at a time (by default as many as keep the scores under 16 MiB). Ties count against the system: an
    irrelevant item that scores the same stands before the relevant one, and equal gallery rows always score the same.
    Raises ValueError for shapes that do not fit, values that are not finite, and a query without a relevant item.
    """
    q, g = as_matrix(queries, "queries"), as_matrix(gallery, "gallery")
    qg, gg = as_groups(query_groups, len(q), "query_groups"), as_groups(gallery_groups, len(g), "gallery_groups")
    if q.shape[1] != g.shape[1] or qg.shape[1] != gg.shape[1]:
        raise ValueError(f"queries {q.shape} and gallery {g.shape}, or the columns of their groups, do not fit")
    # a matrix product may round equal columns differently, so every distinct row is scored once
    first, row_of_item = _distinct_rows(g)
    repeated = len(first) < len(g)
    rows, listed = g[first] if repeated else g, sort_groups(gg)
    ranks = np.empty(len(q), dtype=np.int64)
    for part in blocks(len(q), len(g), block):
        scores = _products(q[part], rows)  # [b, G], or a column for each distinct row
        if repeated:
            scores = scores[:, row_of_item]
        pairs = relevant_pairs(qg[part], *listed)
        check_answerable(np.bincount(pairs[0], minlength=len(scores)) > 0, part.start)
        ranks[part] = ranks_from_scores(scores, *pairs)
    return ranks


def ranks_from_scores(scores: Floats, of_query: Ints, item: Ints) -> Ints:
    """Rank, from 1, of the best-placed relevant item of every query, given all scores [Q, G].

    of_query, item [P]: the relevant pairs, by query, at least one for each, none twice. Ties as in `first_hit_ranks`.
    For the other direction pass the transpose, a view: no copy of it is made.
    """
    at = scores[of_query, item]
    best = np.maximum.reduceat(at, np.searchsorted(of_query, np.arange(len(scores))))  # [Q]
    ranks: Ints = 1 + _count_at_least(scores, best) - np.bincount(of_query[at >= best[of_query]], minlength=len(scores))
    return ranks


def _count_at_least(scores: Floats, best: Floats) -> Ints:
    """How many of every row of [Q, G] reach its bound [Q]."""
    if scores.flags.c_contiguous or not scores.T.flags.c_contiguous:
        return np.array([np.count_nonzero(row >= bound) for row, bound in zip(scores, best, strict=True)])
    counts = np.zeros(len(best), dtype=np.int64)
    items = scores.T  # as it lies in memory: a row of the view would touch a cache line for every score
    for start in range(0, len(items), BLOCK_ITEMS):
        counts += np.count_nonzero(items[start : start + BLOCK_ITEMS] >= best, axis=0)
    return counts


def _products(queries: Floats, gallery: Floats) -> Floats:
    """[b, D] and [G, D] -> [b, G]."""
    if queries.dtype != np.float32 or gallery.dtype != np.float32:
        return queries @ gallery.T
    # torch takes what it could write to, and no array that is read backwards
    q, g = (torch.from_numpy(np.require(x, requirements=["C", "W"])) for x in (queries, gallery))
    with torch.no_grad():
        products: Floats = linear(q, g).numpy()
    return products


def sort_groups(groups: Ints) -> tuple[Ints, Ints]:
    """Groups [G, C] sorted column by column, and the order [G, C] that sorts them: what `relevant_pairs` looks up."""
    order: Ints = np.argsort(groups, axis=0, kind="stable")
    return np.take_along_axis(groups, order, axis=0), order


def relevant_pairs(query_groups: Ints, groups: Ints, order: Ints) -> tuple[Ints, Ints]:
    """Queries and gallery items [P] that agree in a column, by query, none twice.

    query_groups [b, C]; groups [G, C] and order [G, C] as `sort_groups` gives them, once for all blocks of queries.
    """
    found = []
    for column in range(query_groups.shape[1]):
        listed, wanted = groups[:, column], query_groups[:, column]
        first, behind = np.searchsorted(listed, wanted, "left"), np.searchsorted(listed, wanted, "right")
        counts = behind - first
        query = np.repeat(np.arange(len(wanted)), counts)
        within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        found.append(query * len(groups) + order[np.repeat(first, counts) + within, column])
    pairs = np.unique(np.concatenate(found))  # an item that agrees in two columns counts once
    return pairs // len(groups), pairs % len(groups)


def _distinct_rows(matrix: Floats) -> tuple[Ints, Ints]:
    """Index of the first of every set of equal rows, and for each row the position of its set in that index.

    Rows are told apart by a 64-bit hash, which is checked: no copy of the matrix is made or sorted.
    """
    hashes = np.concatenate([_row_hashes(matrix[part]) for part in blocks(len(matrix), matrix.shape[1], None)])
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(matrix)))
    same = all(
        np.array_equal(matrix[repeated[part]], matrix[first[inverse[repeated[part]]]])
        for part in blocks(len(repeated), matrix.shape[1], None)
    )
    if not same:  # two rows with one hash: sort the rows themselves
        _, first, inverse = np.unique(matrix + 0, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
    return first, inverse


def _row_hashes(rows: Floats) -> NDArray[np.uint64]:
    """[b, D] -> [b]; equal rows have equal hashes, a negative zero counts as a positive one."""
    raw = np.ascontiguousarray(rows + 0)
    words = raw.view(np.dtype(f"u{raw.itemsize}")).astype(np.uint64)
    drawn = np.random.default_rng(0).integers(0, 2**63, size=words.shape[1], dtype=np.uint64)
    odd = drawn * np.uint64(2) + np.uint64(1)
    mixed = (words ^ (words >> np.uint64(15))) * odd
    hashed: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64)
    return hashed


def blocks(queries: int, gallery: int, block: int | None) -> Iterator[slice]:
    """Slices over the queries."""
    step = max(1, BLOCK_SCORES // max(1, gallery)) if block is None else block
    if step < 1:
        raise ValueError(f"block is {step}; it has to be at least 1")
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def check_answerable(answerable: Bools, offset: int) -> None:
    """Raises ValueError where a query has no relevant item."""
    if not answerable.all():
        raise ValueError(f"query {offset + int(np.argmin(answerable))} has no relevant item in the gallery")


def as_matrix(values: ArrayLike, name: str) -> Floats:
    """A finite, non-empty [N, D] matrix in at least single precision."""
    array = np.asarray(values)
    array = array.astype(np.result_type(array, np.float32), copy=False)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: a non-empty [N, D] matrix is needed, the shape is {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: row {int(np.argmin(np.isfinite(array).all(axis=1)))} holds NaN or infinity")
    return array


def as_groups(values: ArrayLike, length: int | None, name: str) -> Ints:
    """[N] or [N, C] -> [N, C]."""
    array = np.asarray(values, dtype=np.int64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) == 0 or (length is not None and len(array) != length):
        raise ValueError(f"{name}: one group, or one row of groups, for each item is needed")
    return array
