"""Tables of vectors that are read block by block, so that a table may be larger than the memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class VectorTable(Protocol):
    """A table [N, D]. numpy's arrays are tables too, also memory-mapped ones."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    def __getitem__(self, rows: Any, /) -> NDArray[Any]:
        """Return the vectors of a slice, or of an array of rows."""


class GatheredVectors:
    """A table whose rows are in other tables.

    Args:
        tables: the other tables, [*, D].
        table: for each row, the number of its table, [N].
        row: for each row, its row there, [N].
        dim: D.
    """

    def __init__(
        self, tables: Sequence[VectorTable], table: NDArray[np.int8], row: NDArray[np.int64], dim: int
    ) -> None:
        self.tables, self.table, self.row, self.dim = tables, table, row, dim

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""
        return len(self.row), self.dim

    def __getitem__(self, rows: Any, /) -> NDArray[np.float32]:
        """Return the vectors of a slice, or of an array of rows, in single precision."""
        table, row = self.table[rows], self.row[rows]
        found = np.empty((len(row), self.dim), dtype=np.float32)
        for number, other in enumerate(self.tables):
            here = np.flatnonzero(table == number)
            if len(here):
                found[here] = other[row[here]]
        return found


class VectorWriter:
    """Writes a ``.npy`` file of vectors block by block.

    Args:
        path: the file.
        shape: N and D.
        dtype: the type of the numbers.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.floating[Any]]) -> None:
        self.dtype = np.dtype(dtype)
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, vectors: NDArray[Any]) -> None:
        """Write vectors [n, D]."""
        self._file.write(np.ascontiguousarray(vectors, dtype=self.dtype).data)
