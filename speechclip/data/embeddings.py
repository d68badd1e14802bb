"""Embeddings with ids in ``.npz`` files: those of CLIP, and those that a user provides."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import replacing
from speechclip.data.mapped import Column, gathered, is_large
from speechclip.data.mapped_embeddings import check_norms, header_of, map_embeddings, row_norms

_ROWS = 1 << 16  # ids that are written at a time
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


def load_mapped(path: str | Path, ids: Sequence[str] | None = None) -> tuple[Sequence[str], np.ndarray]:
    """Return the result of :func:`load_embeddings`, memory-mapped and read-only if the file is large.

    The first call writes the mapped copy to a hidden folder next to the file.
    """
    if Path(path).is_file() and is_large(Path(path).stat().st_size):
        mapped = map_embeddings(Path(path))
        if mapped is not None:
            return _select(Path(path), *mapped, ids)
    return load_embeddings(path, ids)


def load_embeddings(path: str | Path, ids: Sequence[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Read embeddings from an ``.npz`` file with ``ids`` [N] and ``embeddings`` [N, D] into memory.

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
    stored = check_table(path, arrays["ids"], table)
    wanted = stored if ids is None else list(ids)
    rows = (table if ids is None else table[_rows_of(Path(path), stored, wanted)]).astype(np.float32, copy=False)
    norms = row_norms(rows)
    check_norms(path, norms, wanted)
    rows /= norms  # in place: a million rows are two gigabytes
    return wanted, rows


def check_table(path: str | Path, ids: np.ndarray, table: np.ndarray) -> list[str]:
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


def _select(
    path: Path, stored: Column, rows: np.ndarray, ids: Sequence[str] | None
) -> tuple[Sequence[str], np.ndarray]:
    """Return the mapped rows of some ids. Other ids than all of them, in order, are gathered in a temporary map."""
    if ids is None:
        return stored, rows
    if stored.same(ids) if isinstance(ids, Column) else stored == ids:
        return ids, rows
    return ids, gathered(rows, _rows_of(path, stored, ids))


def _rows_of(path: Path, stored: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """Return the row of each wanted id. UserError if some are missing."""
    row_of = {item: row for row, item in enumerate(stored)}
    rows = np.fromiter((row_of.get(item, -1) for item in wanted), np.int64, len(wanted))
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{path}: no embedding for {wanted[int(missing[0])]}{more}")
    return rows


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
    save_embedding_blocks(path, ids, iter([embeddings]), embeddings.shape[1], source)


def save_embedding_blocks(
    path: str | Path,
    ids: Sequence[str],
    blocks: Iterable[np.ndarray],
    dim: int,
    source: Mapping[str, str] | None = None,
) -> None:
    """Write the same file as :func:`save_embeddings` from blocks of rows, which need not be in memory together.

    Args:
        path: the file.
        ids: N ids.
        blocks: N rows together, [n_i, dim] each.
        dim: of the embeddings.
        source: see :func:`save_embeddings`.

    Raises:
        ValueError: the blocks do not have N rows.
    """
    width = max((len(item) for item in ids), default=1)

    def listed() -> Iterator[np.ndarray]:
        for start in range(0, len(ids), _ROWS):
            yield np.array(list(ids[start : start + _ROWS]), dtype=f"<U{max(1, width)}")

    with replacing(Path(path)) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_member(archive, "ids", np.dtype(f"<U{max(1, width)}"), (len(ids),), listed())
        _write_member(archive, "embeddings", np.dtype("<f4"), (len(ids), dim), blocks)
        described = np.array(json.dumps(dict(source or {})))
        _write_member(archive, "source", described.dtype, (), [described])


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...], blocks: Iterable[np.ndarray]
) -> None:  # fmt: skip
    """Write an array to an ``.npz`` archive block by block."""
    count = 0
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:  # a fixed date: equal files
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            count += len(block) if shape else 0
            file.write(np.ascontiguousarray(block, dtype).tobytes())
    if shape and count != shape[0]:
        raise ValueError(f"{count} rows instead of {shape[0]}")


def embeddings_dim(path: str | Path) -> int:
    """Return the width of the embeddings in a file. Only its header is read.

    Raises:
        MissingFileError: the file is missing.
        UserError: the file cannot be read, or lacks the embeddings.
    """
    shape = header_of(Path(path))
    return shape[1] if shape is not None and len(shape) == 2 else int(load_embeddings(path)[1].shape[1])


def read_shape(path: Path, source: Mapping[str, str]) -> tuple[int, int] | None:
    """Return rows and width of the embeddings in a file, or None if it is missing, damaged or has another source.

    The file is read once from start to end, block by block, to compare its checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        found = embeddings_source(path) == dict(source)
        shape = header_of(path) if found else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return (shape[0], shape[1]) if shape is not None and len(shape) == 2 else None


def embeddings_source(path: str | Path) -> dict[str, str]:
    """Return the description of the model that computed embeddings; empty if the file has none."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(json.loads(str(archive["source"]))) if "source" in archive else {}
