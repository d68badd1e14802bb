"""Retrieval ranks: the rank of the best-placed relevant item of every query, without a sort, in blocks of queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from speechclip.data.mapped import gathered
from speechclip.model.encoders.kernels.linear import linear

BLOCK_SCORES = 1 << 22  # scores in memory at a time: 16 MiB in single precision
BLOCK_ITEMS = 64  # gallery items compared at a time if the memory layout is by item

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def first_hit_ranks(
    queries: ArrayLike, gallery: ArrayLike, query_groups: ArrayLike, gallery_groups: ArrayLike, block: int | None = None
) -> Ints:
    """Return the rank, from 1, of the best-placed relevant gallery item of every query, by dot product.

    Ties count against the system: an irrelevant item with the same score is placed before the relevant one. Equal
    gallery rows always have the same score.

    Args:
        queries: [Q, D].
        gallery: [G, D].
        query_groups: [Q] or [Q, C].
        gallery_groups: [G] or [G, C].
        block: queries scored at a time; None: as many as fit 16 MiB of scores.
    Raises:
        ValueError: shapes do not fit, values are not finite, or a query has no relevant item.
    """
    q, g = as_matrix(queries, "queries"), as_matrix(gallery, "gallery")
    qg, gg = as_groups(query_groups, len(q), "query_groups"), as_groups(gallery_groups, len(g), "gallery_groups")
    if q.shape[1] != g.shape[1] or qg.shape[1] != gg.shape[1]:
        raise ValueError(f"queries {q.shape} and gallery {g.shape}, or the columns of their groups, do not fit")
    # a matrix product may round equal columns differently, so each distinct row is scored once
    first, row_of_item = _distinct_rows(g)
    repeated = len(first) < len(g)
    rows, listed = gathered(g, first) if repeated else g, sort_groups(gg)
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
    """Return the rank, from 1, of the best-placed relevant item of every query, given all scores.

    Ties count as in :func:`first_hit_ranks`. For the other direction pass the transpose. It is not copied.

    Args:
        scores: [Q, G].
        of_query: the query of each relevant pair, ascending, [P]. Every query has a pair.
        item: the gallery item of each pair, [P]. Pairs are distinct.
    """
    at = scores[of_query, item]
    best = np.maximum.reduceat(at, np.searchsorted(of_query, np.arange(len(scores))))  # [Q]
    ranks: Ints = 1 + _count_at_least(scores, best) - np.bincount(of_query[at >= best[of_query]], minlength=len(scores))
    return ranks


def _count_at_least(scores: Floats, best: Floats) -> Ints:
    """Count the scores of every row of [Q, G] that reach its bound [Q]."""
    if scores.flags.c_contiguous or not scores.T.flags.c_contiguous:
        return np.array([np.count_nonzero(row >= bound) for row, bound in zip(scores, best, strict=True)])
    counts = np.zeros(len(best), dtype=np.int64)
    items = scores.T  # in the order of memory: a row of the view would touch a cache line for every score
    for start in range(0, len(items), BLOCK_ITEMS):
        counts += np.count_nonzero(items[start : start + BLOCK_ITEMS] >= best, axis=0)
    return counts


def _products(queries: Floats, gallery: Floats) -> Floats:
    """Multiply [b, D] and [G, D] -> [b, G]."""
    if queries.dtype != np.float32 or gallery.dtype != np.float32:
        return queries @ gallery.T
    # torch needs writable arrays with positive strides
    q, g = (torch.from_numpy(np.require(x, requirements=["C", "W"])) for x in (queries, gallery))
    with torch.no_grad():
        products: Floats = linear(q, g).numpy()
    return products


def sort_groups(groups: Ints) -> tuple[Ints, Ints]:
    """Return groups [G, C] sorted by column, and the order [G, C] that sorts them, for :func:`relevant_pairs`."""
    order: Ints = np.argsort(groups, axis=0, kind="stable")
    return np.take_along_axis(groups, order, axis=0), order


def relevant_pairs(query_groups: Ints, groups: Ints, order: Ints) -> tuple[Ints, Ints]:
    """Return the distinct pairs of queries and gallery items that agree in a column, ordered by query.

    Args:
        query_groups: [b, C].
        groups: sorted groups of the gallery, [G, C].
        order: the order of :func:`sort_groups`, [G, C].
    Returns:
        queries and gallery items, [P] each.
    """
    found = []
    for column in range(query_groups.shape[1]):
        listed, wanted = groups[:, column], query_groups[:, column]
        first, end = np.searchsorted(listed, wanted, "left"), np.searchsorted(listed, wanted, "right")
        counts = end - first
        query = np.repeat(np.arange(len(wanted)), counts)
        within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        found.append(query * len(groups) + order[np.repeat(first, counts) + within, column])
    pairs = np.unique(np.concatenate(found))  # an item that agrees in two columns counts once
    return pairs // len(groups), pairs % len(groups)


def _distinct_rows(matrix: Floats) -> tuple[Ints, Ints]:
    """Find equal rows. A 64-bit hash distinguishes rows and is checked, so the matrix is not copied or sorted.

    Returns:
        the first row of every set of equal rows.
        for each row, the position of its set in the first array.
    """
    hashes = np.concatenate([_row_hashes(matrix[part]) for part in blocks(len(matrix), matrix.shape[1], None)])
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(matrix)))
    same = all(
        np.array_equal(matrix[repeated[part]], matrix[first[inverse[repeated[part]]]])
        for part in blocks(len(repeated), matrix.shape[1], None)
    )
    if not same:  # different rows with one hash: sort the rows
        _, first, inverse = np.unique(matrix + 0, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
    return first, inverse


def _row_hashes(rows: Floats) -> NDArray[np.uint64]:
    """Hash rows, [b, D] -> [b]. Equal rows have equal hashes. Negative zero equals positive zero."""
    raw = np.ascontiguousarray(rows + 0)
    words = raw.view(np.dtype(f"u{raw.itemsize}")).astype(np.uint64)
    drawn = np.random.default_rng(0).integers(0, 2**63, size=words.shape[1], dtype=np.uint64)
    odd = drawn * np.uint64(2) + np.uint64(1)
    mixed = (words ^ (words >> np.uint64(15))) * odd
    hashed: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64)
    return hashed


def blocks(queries: int, gallery: int, block: int | None) -> Iterator[slice]:
    """Yield slices over the queries."""
    step = max(1, BLOCK_SCORES // max(1, gallery)) if block is None else block
    if step < 1:
        raise ValueError(f"block is {step}; it must be at least 1")
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def check_answerable(answerable: Bools, offset: int) -> None:
    """Check that every query has a relevant item.

    Raises:
        ValueError: a query has no relevant item.
    """
    if not answerable.all():
        raise ValueError(f"query {offset + int(np.argmin(answerable))} has no relevant item in the gallery")


def as_matrix(values: ArrayLike, name: str) -> Floats:
    """Return a finite, non-empty matrix [N, D] in at least single precision.

    Raises:
        ValueError: the shape is wrong or a value is not finite.
    """
    array = np.asarray(values)
    array = array.astype(np.result_type(array, np.float32), copy=False)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: a non-empty [N, D] matrix is needed, the shape is {array.shape}")
    for part in blocks(len(array), array.shape[1], None):
        finite = np.isfinite(array[part]).all(axis=1)
        if not finite.all():
            raise ValueError(f"{name}: row {part.start + int(np.argmin(finite))} contains NaN or infinity")
    return array


def as_groups(values: ArrayLike, length: int | None, name: str) -> Ints:
    """Return groups as [N, C], from [N] or [N, C].

    Raises:
        ValueError: the shape is wrong.
    """
    array = np.asarray(values, dtype=np.int64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) == 0 or (length is not None and len(array) != length):
        raise ValueError(f"{name}: one group, or one row of groups, for each item is needed")
    return array
