"""Nearest neighbours by cosine: exact over all vectors, or an inverted file whose shortlist is ranked exactly.

The inverted file is faiss's (Johnson et al. 2019, arXiv 1702.08734): vectors are grouped by k-means, a query looks into
the nearest groups alone, where vectors are kept in 8 bits a dimension; the best of them are ranked by the stored ones.
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

EXACT_UP_TO = 50_000  # vectors; up to here all cosines take a few milliseconds
BLOCK = 32_768  # vectors compared at once
TRAINING_VECTORS = 64  # of each list, to find the lists' centres
SHORTLIST = 20  # vectors ranked exactly for each one that is wanted
LEAST_SHORTLIST = 200


def exact_search(vectors: NDArray[Any], queries: Floats, top_k: int) -> tuple[Rows, Floats]:
    """The ``top_k`` largest inner products of each query, best first; of equal ones the earlier row.

    Args:
        vectors: [N, D] of any floating type, may be a memory map. queries: [Q, D].
    Returns:
        rows [Q, k] and products [Q, k], k = min(top_k, N).
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
    """Number of lists for ``count`` vectors: twice the square root, so that centres and lists cost about the same."""
    return max(1, round(2 * math.sqrt(count)))


def default_probes(lists: int) -> int:
    """Lists that a query looks into: a share that falls as lists grow in number (RESULTS.md has what it finds)."""
    return min(lists, math.ceil(2.25 * math.sqrt(lists)))


def build_inverted_file(vectors: NDArray[Any], lists: int, seed: int) -> Any:
    """faiss's inverted file with 8 bits a dimension over unit vectors [N, D].

    Raises UserError where faiss is not installed, or there are fewer vectors than lists.
    """
    faiss = import_faiss()
    count, dim = vectors.shape
    if not 1 <= lists <= count:
        raise UserError(f"--lists: {lists}, for {count} vectors it has to be 1 to {count}")
    centres = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        centres, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.spherical, index.cp.seed, index.cp.niter = True, seed, 8
    index.cp.min_points_per_centroid = 1  # few vectors are slow to no one
    sample = np.random.default_rng(seed).permutation(count)[: lists * TRAINING_VECTORS]
    sample.sort()
    index.train(np.ascontiguousarray(vectors[sample], dtype=np.float32))
    for start in range(0, count, BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK], dtype=np.float32))
    return index


class InvertedFile:
    """Approximate search: the shortlist of an inverted file, ranked by the vectors themselves."""

    def __init__(self, index: Any, vectors: NDArray[Any], probes: int) -> None:
        self.index, self.vectors = index, vectors
        self.index.nprobe = probes

    def search(self, queries: Floats, top_k: int) -> tuple[Rows, Floats]:
        """As :func:`exact_search`; fewer rows where the lists looked into hold fewer (never less than one)."""
        wanted = min(max(LEAST_SHORTLIST, SHORTLIST * top_k), len(self.vectors))
        _, shortlist = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), wanted)
        rows, cosines = [], []
        for query, found in zip(queries, shortlist):
            kept = np.sort(found[found >= 0])  # in the order they are stored
            scores = self.vectors[kept].astype(np.float32) @ query
            order, value = largest(scores[None], min(top_k, len(scores)))
            rows.append(kept[order[0]])
            cosines.append(value[0])
        least = min(map(len, rows))
        return np.stack([row[:least] for row in rows]), np.stack([row[:least] for row in cosines])


def import_faiss() -> Any:
    """faiss, or a UserError that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            'faiss is not installed: tools/install.sh --extras "search", or index with --kind exact'
        ) from error
    return faiss


def read_inverted_file(path: Path) -> Any:
    """What :func:`write_inverted_file` wrote. Raises UserError where it is missing or damaged."""
    faiss = import_faiss()
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:  # faiss's own class for every failure
        raise UserError(f"{path}: missing, damaged or truncated") from error


def write_inverted_file(index: Any, path: Path) -> None:
    """Write an inverted file."""
    import_faiss().write_index(index, str(path))
