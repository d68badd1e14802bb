"""Memory-mapped copies of large ``.npz`` files with embeddings: normalised rows in single precision, and their ids."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from speechclip.common.errors import UserError
from speechclip.data.mapped import (
    ArrayWriter,
    Column,
    ColumnWriter,
    files_stamp,
    mapped_folder,
    open_array,
    open_column,
)

logger = logging.getLogger(__name__)

VERSION = "embeddings 1"
_BYTES = 32 << 20  # of an array in memory at a time
_ROWS = 1 << 16  # rows whose norms are computed at a time


def map_embeddings(path: Path) -> tuple[Column, np.ndarray] | None:
    """Return the ids of a file and its embeddings [N, D], float32, L2-normalised, mapped.

    The first call writes them to a hidden folder next to the file, block by block.

    Returns:
        None if the file does not have the usual form: the reader of whole arrays names the problem.

    Raises:
        UserError: an id occurs twice, or a row is zero or not finite.
    """

    def build(folder: Path) -> None:
        logger.info("%s: building its memory-mapped copy", path)
        with zipfile.ZipFile(path) as archive:
            ids = _write_ids(path, folder, archive)
            _write_rows(path, folder, archive, ids)

    def use(folder: Path) -> tuple[Column, np.ndarray]:
        return open_column(folder, "ids"), open_array(folder / "embeddings.npy")

    try:
        return mapped_folder(path.with_name(f".{path.stem}"), lambda: files_stamp([path], VERSION), build, use)
    except (OtherForm, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None


def header_of(path: Path) -> tuple[int, ...] | None:
    """Return the shape of the embeddings in a file, from its header, or None if the file has not the usual form."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("embeddings.npy") as file:
            shape, _ = read_header(file)
    except (OtherForm, OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None
    return shape


class OtherForm(Exception):
    """An array that is not read block by block."""


def _write_ids(path: Path, folder: Path, archive: zipfile.ZipFile) -> Column:
    """Write the column of the ids. UserError if one occurs twice."""
    column = ColumnWriter(folder, "ids")
    with archive.open("ids.npy") as file:
        shape, dtype = read_header(file)
        if len(shape) != 1 or dtype.kind != "U":
            raise OtherForm
        for block in blocks_of(file, shape, dtype):
            column.append_strings(block.tolist())
    ids = column.finish()
    last, ascending = "", True
    for item in ids:
        ascending, last = ascending and item > last, item
    if not ascending and len(set(ids)) != len(ids):
        raise UserError(f"{path}: duplicate ids. Save each id once.")
    return ids


def _write_rows(path: Path, folder: Path, archive: zipfile.ZipFile, ids: Sequence[str]) -> None:
    """Write the normalised rows."""
    with archive.open("embeddings.npy") as file:
        shape, dtype = read_header(file)
        if len(shape) != 2 or shape[0] != len(ids) or dtype.kind not in "fiu":
            raise OtherForm
        rows, done = ArrayWriter(folder / "embeddings.npy", np.float32, shape[1]), 0
        for block in blocks_of(file, shape, dtype):
            unit = block.astype(np.float32)
            norms = row_norms(unit)
            check_norms(path, norms, ids[done : done + len(unit)])
            unit /= norms
            rows.append(unit)
            done += len(unit)
        rows.finish()


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of an array."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read(file)
    if by_column or dtype.hasobject:
        raise OtherForm
    return shape, dtype


def blocks_of(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield blocks of rows of an array whose header was read."""
    size = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, _BYTES // max(1, size))
    for start in range(0, shape[0], step):
        count = min(step, shape[0] - start)
        raw = file.read(count * size)
        if len(raw) != count * size:
            raise EOFError
        yield np.frombuffer(raw, dtype).reshape(count, *shape[1:])


def check_norms(path: str | Path, norms: np.ndarray, ids: Sequence[str]) -> None:
    """Check the norms [N, 1] of rows.

    Raises:
        UserError: a row is zero or not finite.
    """
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(bad):
        raise UserError(f"{path}: the embedding of {ids[int(bad[0])]} is zero or not finite. Remove or correct it.")


def row_norms(matrix: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms [N, 1] of the rows of a matrix [N, D] without another matrix of its size."""
    parts = [np.linalg.norm(matrix[at : at + _ROWS], axis=1, keepdims=True) for at in range(0, len(matrix), _ROWS)]
    return np.concatenate([np.empty((0, 1), matrix.dtype), *parts])
