"""Write faiss's inverted file list by list, so that its codes are never in memory together.

Vectors arrive in the order of the rows, and the file has them in the order of the lists. On the way, their codes are in
temporary files. Each of them holds a range of lists that fits into memory. The result is the file that faiss's
``write_index`` writes for an index in memory.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.search.neighbours import import_faiss

if TYPE_CHECKING:
    from speechclip.search.neighbours import Floats, Rows
    from speechclip.search.vectors import VectorTable

    Blocks = Iterable[tuple[Rows, Floats]]
    List = tuple[NDArray[np.uint8], Rows]

TRAINING_VECTORS = 64  # vectors per list that k-means uses
PART_BYTES = 128_000_000  # of the codes that are sorted at once
_NO_LISTS = b"il00"


def train_inverted_file(vectors: VectorTable, lists: int, seed: int) -> Any:
    """Return faiss's inverted file with 8 bits per dimension and trained lists, which are empty.

    Args:
        vectors: [N, D], L2-normalised. A sample of 64 per list is read.
        lists: number of lists, 1 to N.
        seed: seed of the sample and of k-means.

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
    return index


def write_inverted_file(
    index: Any, path: Path, blocks: Blocks, count: int, new_rows: Rows | None = None
) -> None:  # fmt: skip
    """Write an inverted file with the vectors of an index and other vectors. The index itself stays as it is.

    Args:
        index: a trained index. If it has vectors, they come first in each list.
        path: the file. It must not be the one that ``index`` maps.
        blocks: the rows [n] and vectors [n, D] that are added, in the order of the rows.
        count: number of vectors that are added at most.
        new_rows: for each vector of ``index``, its new row, or -1 to remove it; None to keep all.

    Raises:
        UserError: a vector is not finite.
    """
    with _temporary_parts(path.parent, index, count) as parts:
        total = index.ntotal if new_rows is None else int((new_rows >= 0).sum())
        for rows, vectors in blocks:
            parts.add(rows, *_encode(index, vectors))
            total += len(rows)
        with path.open("wb") as file:
            file.write(_header(index, total))
            place, sizes = file.tell(), np.zeros(index.nlist, dtype="<u8")
            file.write(sizes.tobytes())
            for number, (codes, rows) in enumerate(parts.read()):
                before = _read_list(index.invlists, number, index.code_size, new_rows)
                for one in (before[0], codes, before[1], rows):
                    file.write(np.ascontiguousarray(one).data)
                sizes[number] = len(before[1]) + len(rows)
            file.seek(place)
            file.write(sizes.tobytes())


def _header(index: Any, total: int) -> bytes:
    """Return the start of the file of an inverted file with ``total`` vectors, up to the sizes of its lists."""
    held, count = index.invlists, index.ntotal
    index.invlists, index.ntotal = None, total
    try:
        header: bytes = import_faiss().serialize_index(index).tobytes()
    finally:
        index.invlists, index.ntotal = held, count
    if not header.endswith(_NO_LISTS):
        raise RuntimeError("faiss writes another format. Install the version of tools/constraints.txt.")
    lists = struct.pack("<4sQQ4sQ", b"ilar", index.nlist, index.code_size, b"full", index.nlist)
    return header.removesuffix(_NO_LISTS) + lists


def _encode(index: Any, vectors: Floats) -> tuple[Rows, NDArray[np.uint8]]:
    """Return the list and the code of each vector: [n] and [n, bytes]."""
    faiss = import_faiss()
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    numbers = np.ascontiguousarray(index.quantizer.search(vectors, 1)[1][:, 0])
    if (numbers < 0).any():
        raise UserError("an embedding is not finite. Check the weights of the model.")
    codes = np.empty((len(vectors), index.code_size), dtype=np.uint8)
    pointers = (faiss.swig_ptr(array) for array in (vectors, numbers, codes))
    index.encode_vectors(len(vectors), *pointers, False)
    return numbers, codes


def _read_list(lists: Any, number: int, size: int, new_rows: Rows | None) -> List:
    """Return the codes [n, size] and the new rows [n] of the vectors of a list that are kept."""
    faiss = import_faiss()
    count = lists.list_size(number)
    if not count:
        return np.empty((0, size), np.uint8), np.empty(0, np.int64)
    rows = faiss.rev_swig_ptr(lists.get_ids(number), count)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), count * size).reshape(count, size)
    if new_rows is None:
        return codes, rows
    moved = new_rows[rows]
    return codes[moved >= 0], moved[moved >= 0]


@contextlib.contextmanager
def _temporary_parts(folder: Path, index: Any, count: int) -> Iterator[_Parts]:
    """Open temporary files for the codes of an index. They have no names, so that they vanish if the process is killed.

    Args:
        folder: the folder of the files.
        index: the index.
        count: number of vectors at most.
    """
    kind = np.dtype([("list", "<i4"), ("row", "<i8"), ("code", "u1", (index.code_size,))])
    number = max(1, min(index.nlist, -(-count * kind.itemsize // PART_BYTES)))
    width = -(-index.nlist // number)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(0, index.nlist, width)]
        yield _Parts(files, kind, index.nlist, width)


class _Parts:
    """Files of codes. Each holds a range of lists, in the order in which the vectors arrive.

    Args:
        files: the files.
        kind: the type of an entry: list, row and code.
        lists: number of lists.
        width: lists of a file.
    """

    def __init__(self, files: Sequence[IO[bytes]], kind: np.dtype[Any], lists: int, width: int) -> None:
        self.files, self.kind, self.lists, self.width = files, kind, lists, width

    def add(self, rows: Rows, numbers: Rows, codes: NDArray[np.uint8]) -> None:
        """Add vectors: their rows [n], lists [n] and codes [n, size]."""
        entries = np.empty(len(rows), dtype=self.kind)
        entries["list"], entries["row"], entries["code"] = numbers, rows, codes
        part = numbers // self.width
        entries = entries[np.argsort(part, kind="stable")]
        edges = np.searchsorted(np.sort(part), np.arange(len(self.files) + 1))
        for file, start, end in zip(self.files, edges, edges[1:]):
            file.write(entries[start:end].tobytes())

    def read(self) -> Iterator[List]:
        """Yield the codes and rows of each list. A file is removed after it is read."""
        for part, file in enumerate(self.files):
            file.seek(0)
            entries = np.frombuffer(file.read(), dtype=self.kind)
            file.close()
            order = np.argsort(entries["list"], kind="stable")
            codes, rows, numbers = (entries[name][order] for name in ("code", "row", "list"))
            first, last = part * self.width, min((part + 1) * self.width, self.lists)
            edges = np.searchsorted(numbers, np.arange(first, last + 1))
            for start, end in zip(edges, edges[1:]):
                yield codes[start:end], rows[start:end]
