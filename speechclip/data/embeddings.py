"""Embeddings with ids in ``.npz`` files: those of CLIP, and those that a user provides."""

from __future__ import annotations

import contextlib
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import replacing

_ROWS = 1 << 16  # rows whose norms are computed at a time
_MAX_RATIO = 100  # unpacked size of a file divided by its size


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file by name.

    Raises:
        MissingFileError: the file is missing.
        UserError: the file cannot be read.
    """
    try:
        _check_unpacked(Path(path))
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UserError(f"{path}: not a readable .npz file. Save it with numpy.savez.")
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise MissingFileError(path) from None
    # zlib.error: a damaged compressed array; MemoryError: a header with an impossible shape
    except (ValueError, TypeError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable .npz file. Save it with numpy.savez.") from error


def _check_unpacked(path: Path) -> None:
    """Raise a UserError for a zip archive whose content is much larger than the file."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked, packed = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if unpacked > _MAX_RATIO * packed:
        raise UserError(f"{path}: refused: {packed} bytes would unpack to {unpacked}. Save it again uncompressed.")


def load_embeddings(path: str | Path, ids: Sequence[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Read embeddings from an ``.npz`` file with ``ids`` [N] and ``embeddings`` [N, D].

    Args:
        path: the file.
        ids: the ids to return, in this order; None for all ids in the order of the file.

    Returns:
        The ids, and their embeddings in float32, L2-normalised.

    Raises:
        MissingFileError: the file is missing.
        UserError: the file cannot be read, lacks an array or an id, repeats an id, or has a row that is zero or not
            finite.
    """
    arrays = read_arrays(path)
    if not {"ids", "embeddings"} <= arrays.keys():
        raise UserError(f"{path}: needs the arrays ids and embeddings. Save it with both.")
    table = arrays["embeddings"]
    stored = _check_table(path, arrays["ids"], table)
    row_of = {item: row for row, item in enumerate(stored)}
    wanted = stored if ids is None else list(ids)
    missing = [item for item in wanted if item not in row_of]
    if missing:
        raise UserError(
            f"{path}: no embedding for {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    rows = (table if ids is None else table[[row_of[item] for item in wanted]]).astype(np.float32, copy=False)
    norms = row_norms(rows)
    _check_norms(path, wanted, norms)
    rows /= norms  # in place: a million rows are two gigabytes
    return wanted, rows


def _check_table(path: str | Path, ids: np.ndarray, table: np.ndarray) -> list[str]:
    """Return the ids of a table of embeddings.

    Raises:
        UserError: the ids or the embeddings are not what :func:`load_embeddings` needs.
    """
    if ids.ndim != 1:
        raise UserError(f"{path}: the ids are not a list. Save it with an array of ids.")
    stored = [str(item) for item in ids]
    if table.dtype.kind not in "fiu":
        raise UserError(f"{path}: the embeddings are not numbers. Save it with an array of numbers.")
    if table.ndim != 2 or len(stored) != len(table):
        raise UserError(f"{path}: {len(stored)} ids for embeddings of shape {table.shape}. Store a row for each id.")
    if len(set(stored)) != len(stored):
        raise UserError(f"{path}: duplicate ids. Save each id once.")
    return stored


def _check_norms(path: str | Path, ids: Sequence[str], norms: np.ndarray) -> None:
    if not np.isfinite(norms).all() or (norms == 0).any():
        bad = ids[int(np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))[0])]
        raise UserError(f"{path}: the embedding of {bad} is zero or not finite. Remove or correct it.")


class MappedEmbeddings:
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


def map_embeddings(path: str | Path) -> tuple[list[str], MappedEmbeddings | np.ndarray]:
    """Read ids, and map embeddings into memory. A compressed file is read as a whole.

    The arguments, the results and the errors are those of :func:`load_embeddings`.
    """
    found = None
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        found = _map_table(Path(path))
    return found or load_embeddings(path)  # which names the problem, if there is one


def _map_table(path: Path) -> tuple[list[str], MappedEmbeddings] | None:
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
        table = _map_member(path, archive, "embeddings.npy")
        if table is None:
            return None
        ids = _check_table(path, arrays["ids"], table)
        norms = _read_norms(archive, "embeddings.npy", table)
    _check_norms(path, ids, norms)
    return ids, MappedEmbeddings(table, norms)


def _map_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray | None:
    """Map an array [N, D] of numbers of an ``.npz`` file; None if it is compressed or another array."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(info) as member:
        shape, fortran, dtype = _read_header(member)
        header = member.tell()
    if fortran or len(shape) != 2 or not all(shape) or dtype.kind not in "fiu":
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        names = struct.unpack("<26x2H", file.read(30))  # the lengths of the name and of the extra field
    offset = info.header_offset + 30 + sum(names) + header
    return np.memmap(path, dtype, "r", offset, shape)


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def _read_norms(archive: zipfile.ZipFile, name: str, table: np.ndarray) -> np.ndarray:
    """Return the norms [N, 1] of a mapped member. It is read through the archive, which checks its checksum."""
    norms = np.empty((len(table), 1), dtype=np.float32)
    size = table.shape[1] * table.dtype.itemsize
    with archive.open(name) as member:
        _read_header(member)
        for at in range(0, len(table), _ROWS):
            count = min(_ROWS, len(table) - at)
            rows = np.frombuffer(member.read(count * size), dtype=table.dtype).reshape(count, -1)
            norms[at : at + count] = np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
        member.read(1)  # the end, where the checksum is compared
    return norms


def row_norms(matrix: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms [N, 1] of the rows of a matrix [N, D] without another matrix of its size."""
    parts = [np.linalg.norm(matrix[at : at + _ROWS], axis=1, keepdims=True) for at in range(0, len(matrix), _ROWS)]
    return np.concatenate([np.empty((0, 1), matrix.dtype), *parts])


def save_embeddings(
    path: str | Path, ids: Sequence[str], embeddings: np.ndarray, source: Mapping[str, str] | None = None
) -> None:
    """Write the ``.npz`` file that :func:`load_embeddings` reads. It is always either the old or the new one.

    Args:
        path: the file.
        ids: N ids.
        embeddings: [N, D].
        source: description of the model that computed them, for :func:`embeddings_source`.
    """
    with replacing(Path(path)) as part:
        np.savez(
            part,
            ids=np.array(list(ids), dtype=np.str_),
            embeddings=embeddings.astype(np.float32),
            source=np.array(json.dumps(dict(source or {}))),
        )


def embeddings_source(path: str | Path) -> dict[str, str]:
    """Return the description of the model that computed embeddings; empty if the file has none."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(json.loads(str(archive["source"]))) if "source" in archive else {}
