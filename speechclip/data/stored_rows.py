"""Embeddings that are read in place from an ``.npz`` file, for one pass over a file of any size.

:func:`speechclip.data.embeddings.load_mapped` makes a copy that many runs read. Here nothing is written.
"""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.data.embeddings import check_table, load_embeddings
from speechclip.data.mapped_embeddings import OtherForm, blocks_of, check_norms, read_header, row_norms

_MEMBER = "embeddings.npy"


class StoredRows:
    """L2-normalised embeddings of a file that is mapped into memory. Rows are read when they are needed.

    Args:
        table: [N, D], of any type of numbers.
        norms: the norms of the rows, [N, 1].
    """

    def __init__(self, table: np.ndarray, norms: np.ndarray) -> None:
        self.table, self.norms = table, norms

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""
        return self.table.shape

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Return the rows of a slice, or of an array of row numbers, in single precision."""
        return np.asarray(self.table[rows], dtype=np.float32) / self.norms[rows]


def open_rows(path: str | Path) -> tuple[Sequence[str], StoredRows | np.ndarray]:
    """Read ids, and map embeddings into memory. A compressed file is read as a whole.

    The arguments, the results and the errors are those of :func:`speechclip.data.embeddings.load_embeddings`.
    """
    found = None
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, OtherForm):
        found = _map_table(Path(path))
    return found or load_embeddings(path)  # which names the problem, if there is one


def _map_table(path: Path) -> tuple[list[str], StoredRows] | None:
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
        table = _map_member(path, archive)
        if table is None:
            return None
        ids = check_table(path, arrays["ids"], table)
        norms = _read_norms(archive, len(table))
    check_norms(path, norms, ids)
    return ids, StoredRows(table, norms)


def _map_member(path: Path, archive: zipfile.ZipFile) -> np.ndarray | None:
    """Map the array [N, D] of embeddings; None if it is compressed or another array."""
    info = archive.getinfo(_MEMBER)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(info) as member:
        shape, dtype = read_header(member)
        header = member.tell()
    if len(shape) != 2 or not all(shape) or dtype.kind not in "fiu":
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        names = struct.unpack("<26x2H", file.read(30))  # the lengths of the name and of the extra field
    offset = info.header_offset + 30 + sum(names) + header
    return np.memmap(path, dtype, "r", offset, shape)


def _read_norms(archive: zipfile.ZipFile, count: int) -> np.ndarray:
    """Return the norms [N, 1]. The rows are read through the archive, which checks their checksum."""
    norms, done = np.empty((count, 1), dtype=np.float32), 0
    with archive.open(_MEMBER) as member:
        for block in blocks_of(member, *read_header(member)):
            norms[done : done + len(block)] = row_norms(block.astype(np.float32))
            done += len(block)
        member.read(1)  # the end, where the checksum is compared
    return norms
