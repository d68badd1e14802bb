"""Nearest neighbours by cosine: exact search over all vectors, or an inverted file with exact re-ranking.

The inverted file is faiss's (Johnson et al. 2019, arXiv 1702.08734). k-means groups the vectors into lists, which store
8 bits per dimension. A query searches only the nearest lists. The best vectors of these lists, the shortlist, are
ranked again with the stored vectors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.eval.neighbours import largest

if TYPE_CHECKING:
    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]

EXACT_UP_TO = 50_000  # vectors; up to this number all cosines take a few milliseconds
BLOCK = 32_768  # vectors that are compared at once
TRAINING_VECTORS = 64  # vectors per list that k-means uses
SHORTLIST = 20  # vectors that are ranked again, per result
LEAST_SHORTLIST = 200


def exact_search(vectors: NDArray[Any], queries: Floats, top_k: int) -> tuple[Rows, Floats]:
    """Find the largest inner products of each query, best first. Of equal ones, the earlier row comes first.

    Args:
        vectors: [N, D] of any floating type; may be memory-mapped.
        queries: [Q, D].
        top_k: number of results per query.

    Returns:
        Rows [Q, k] and inner products [Q, k], with k = min(top_k, N).
    """
    top_k = min(top_k, len(vectors))
    best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], dtype=np.float32)
        scores = np.concatenate([best, queries @ block.T], axis=1)  # [Q, k + block]
        here = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        rows = np.concatenate([rows, here], axis=1)
        order, best = largest(scores, min(top_k, scores.shape[1]))
        rows = np.take_along_axis(rows, order, axis=1)
    return rows, best


def default_lists(count: int) -> int:
    """Return the number of lists for ``count`` vectors: 2 sqrt(count). Centres and lists then cost about the same."""
    return max(1, round(2 * math.sqrt(count)))


def default_probes(lists: int) -> int:
    """Return the number of lists that a query searches: 2.25 sqrt(lists). The share falls with the number of lists."""
    return min(lists, math.ceil(2.25 * math.sqrt(lists)))


def build_inverted_file(vectors: NDArray[Any], lists: int, seed: int) -> Any:
    """Build faiss's inverted file with 8 bits per dimension.

    Args:
        vectors: [N, D], L2-normalised.
        lists: number of lists, 1 to N.
        seed: seed of k-means.

    Raises:
        UserError: faiss is not installed, or ``lists`` is out of range.
    """
    faiss = import_faiss()
    count, dim = vectors.shape
    if not 1 <= lists <= count:
        raise UserError(f"--lists: {lists} is not 1 to {count}, the number of vectors. Change the value.")
    centres = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        centres, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.spherical, index.cp.seed, index.cp.niter = True, seed, 8
    index.cp.min_points_per_centroid = 1  # do not warn about few vectors
    sample = np.random.default_rng(seed).permutation(count)[: lists * TRAINING_VECTORS]
    sample.sort()
    index.train(np.ascontiguousarray(vectors[sample], dtype=np.float32))
    for start in range(0, count, BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK], dtype=np.float32))
    return index


class InvertedFile:
    """Approximate search: the shortlist of an inverted file, ranked again with the stored vectors."""

    def __init__(self, index: Any, vectors: NDArray[Any], probes: int) -> None:
        self.index, self.vectors = index, vectors
        self.index.nprobe = probes

    def search(self, queries: Floats, top_k: int, within: range | None = None) -> tuple[Rows, Floats]:
        """Find the nearest vectors. See :func:`exact_search`; k is smaller if the searched lists hold fewer.

        Args:
            queries: [Q, D].
            top_k: number of results per query.
            within: the rows that are searched; None for all.
        """
        wanted = min(max(LEAST_SHORTLIST, SHORTLIST * top_k), len(self.vectors))
        _, shortlist = self.index.search(
            np.ascontiguousarray(queries, dtype=np.float32), wanted, params=self._within(within)
        )
        rows, cosines = [], []
        for query, found in zip(queries, shortlist):
            kept = np.sort(found[found >= 0])  # in the order of the rows
            scores = self.vectors[kept].astype(np.float32) @ query
            order, value = largest(scores[None], min(top_k, len(scores)))
            rows.append(kept[order[0]])
            cosines.append(value[0])
        least = min(map(len, rows))
        return np.stack([row[:least] for row in rows]), np.stack([row[:least] for row in cosines])

    def _within(self, rows: range | None) -> Any:
        """Return faiss's parameters of a search in some rows. The share of lists grows as these rows are fewer."""
        if rows is None:
            return None
        faiss = import_faiss()
        share = len(rows) / len(self.vectors)
        probes = min(self.index.nlist, math.ceil(self.index.nprobe / math.sqrt(max(share, 1e-6))))
        return faiss.SearchParametersIVF(sel=faiss.IDSelectorRange(rows.start, rows.stop), nprobe=probes)


def import_faiss() -> Any:
    """Import faiss.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            'faiss is not installed. Install it with: tools/install.sh --extras "search". Or index with --kind exact.'
        ) from error
    return faiss


def read_inverted_file(path: Path) -> Any:
    """Read an inverted file.

    Raises:
        UserError: the file is missing or damaged, or faiss is not installed.
    """
    faiss = import_faiss()
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:  # faiss raises this class for every failure
        raise UserError(f"{path}: missing, damaged or truncated. Index the files again.") from error


def write_inverted_file(index: Any, path: Path) -> None:
    """Write an inverted file."""
    import_faiss().write_index(index, str(path))


def update_inverted_file(index: Any, new_rows: Rows, vectors: NDArray[Any], added: Rows) -> None:
    """Change an inverted file in place: renumber and remove vectors, then add others. The lists stay the same.

    Args:
        index: the inverted file of N vectors.
        new_rows: the new row of each vector, [N]; -1 removes it.
        vectors: all vectors in their new rows, [M, D].
        added: the rows of ``vectors`` that are added.
    """
    faiss = import_faiss()
    lists, size = index.invlists, index.code_size
    for number in range(index.nlist):
        count = lists.list_size(number)
        if not count:
            continue
        rows = faiss.rev_swig_ptr(lists.get_ids(number), count)
        kept = np.flatnonzero(new_rows[rows] >= 0)
        if len(kept) < count:
            codes = faiss.rev_swig_ptr(lists.get_codes(number), count * size).reshape(count, size)
            codes[: len(kept)], rows[: len(kept)] = codes[kept], rows[kept]
        rows[: len(kept)] = new_rows[rows[: len(kept)]]
        lists.resize(number, len(kept))
    index.ntotal = int((new_rows >= 0).sum())
    for start in range(0, len(added), BLOCK):
        block = added[start : start + BLOCK]
        index.add_with_ids(np.ascontiguousarray(vectors[block], dtype=np.float32), block)
