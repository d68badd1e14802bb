"""Embeddings with ids in ``.npz`` files: those of CLIP, and those that a user provides."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    if arrays["ids"].ndim != 1:
        raise UserError(f"{path}: the ids are not a list. Save it with an array of ids.")
    stored, table = [str(item) for item in arrays["ids"]], arrays["embeddings"]
    if table.dtype.kind not in "fiu":
        raise UserError(f"{path}: the embeddings are not numbers. Save it with an array of numbers.")
    if table.ndim != 2 or len(stored) != len(table):
        raise UserError(f"{path}: {len(stored)} ids for embeddings of shape {table.shape}. Store a row for each id.")
    row_of = {item: row for row, item in enumerate(stored)}
    if len(row_of) != len(stored):
        raise UserError(f"{path}: duplicate ids. Save each id once.")
    wanted = stored if ids is None else list(ids)
    missing = [item for item in wanted if item not in row_of]
    if missing:
        raise UserError(
            f"{path}: no embedding for {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    rows = (table if ids is None else table[[row_of[item] for item in wanted]]).astype(np.float32, copy=False)
    norms = row_norms(rows)
    if not np.isfinite(norms).all() or (norms == 0).any():
        bad = wanted[int(np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))[0])]
        raise UserError(f"{path}: the embedding of {bad} is zero or not finite. Remove or correct it.")
    rows /= norms  # in place: a million rows are two gigabytes
    return wanted, rows


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
