"""Nearest neighbours by cosine: exact search over all vectors, or an inverted file with exact re-ranking.

The inverted file is faiss's (Johnson et al. 2019, arXiv 1702.08734). k-means groups the vectors into lists, which store
8 bits per dimension. A query searches only the nearest lists. The best vectors of these lists, the shortlist, are
ranked again with the stored vectors.
"""

from __future__ import annotations

import math
import mmap
import os
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
SHORTLIST = 20  # vectors that are ranked again, per result
LEAST_SHORTLIST = 200
READ_AHEAD_FROM = 2 << 30  # bytes of mapped vectors; fewer are expected to stay in memory


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


class InvertedFile:
    """Approximate search: the shortlist of an inverted file, ranked again with the stored vectors."""

    def __init__(self, index: Any, vectors: NDArray[Any], probes: int) -> None:
        self.index, self.vectors = index, vectors
        self.index.nprobe = probes
        self._map: mmap.mmap | None = None
        if isinstance(vectors, np.memmap) and isinstance(vectors.base, mmap.mmap) and vectors.nbytes > READ_AHEAD_FROM:
            self._map = vectors.base
            self._map.madvise(mmap.MADV_RANDOM)  # a read of one vector does not read its neighbours

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
            self._read_ahead(kept)
            scores = self.vectors[kept].astype(np.float32) @ query
            order, value = largest(scores[None], min(top_k, len(scores)))
            rows.append(kept[order[0]])
            cosines.append(value[0])
        least = min(map(len, rows))
        return np.stack([row[:least] for row in rows]), np.stack([row[:least] for row in cosines])

    def _read_ahead(self, rows: Rows) -> None:
        """Start to read mapped vectors from the disk, all at the same time."""
        if self._map is None:
            return
        first, size = getattr(self.vectors, "offset", 0) % mmap.ALLOCATIONGRANULARITY, self.vectors[0].nbytes
        for start in (first + size * rows).tolist():
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + size - page)

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
    """Open an inverted file. Its lists stay on disk and are mapped into memory.

    Raises:
        UserError: the file is missing or damaged, or faiss is not installed.
    """
    faiss = import_faiss()
    damaged = UserError(f"{path}: missing, damaged or truncated. Index the files again.")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:  # faiss raises this class for every failure
        raise damaged from error
    lists = faiss.downcast_InvertedLists(index.invlists)
    if path.stat().st_size < index.ntotal * (index.code_size + 8):  # a truncated file would be read beyond its end
        raise damaged
    lists.prefetch_nthread = 0  # faiss would start threads for every query
    return index


def read_ahead(path: Path) -> None:
    """Ask the system to read a file that is mapped into memory."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
