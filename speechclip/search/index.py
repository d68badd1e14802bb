"""An index of images on disk: embeddings, ids, thumbnails, and which model's joint space they are of.

A folder with ``index.json`` (see :class:`IndexInfo`), ``items.json`` (ids and files, row by row), ``vectors.npy`` (unit
vectors, single precision where search is exact, else half, mapped into memory), ``lists.faiss`` (inverted file, large
indexes alone) and ``thumbnails/<row // 1000>/<row>.jpg``. Only numbers and text are read from it; like any file for
faiss's native reader, ``lists.faiss`` should come from somebody you trust.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.common.files import is_hub_id
from speechclip.search.neighbours import InvertedFile, exact_search, read_inverted_file

if TYPE_CHECKING:
    from speechclip.api import SpeechCLIP
    from speechclip.search.neighbours import Floats, Rows

INFO, ITEMS, VECTORS, LISTS, THUMBNAILS = "index.json", "items.json", "vectors.npy", "lists.faiss", "thumbnails"
FORMAT = 1
EXACT, INVERTED = "exact", "ivf"


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """What ``index.json`` holds.

    kind: "exact" or "ivf". count, dim: of the vectors. space: :func:`joint_space` of the model. model: where that was,
    relative to the folder, or its id on the hub. thumbnails: whether there are any. lists, probes: of ivf, how many
    there are and how many a query looks into. skipped: files of the image folder that could not be read.
    provenance: command, seed, commit, versions.
    """

    kind: str
    count: int
    dim: int
    space: str
    model: str
    thumbnails: bool
    lists: int = 0
    probes: int = 0
    skipped: int = 0
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT


def joint_space(model: SpeechCLIP) -> str:
    """What tells the joint space of one model from another's: ``clip:<hash>`` or, without a CLIP, ``head:<hash>``.

    Heads that were trained against one CLIP share its space and so an index. One that was trained on precomputed
    embeddings alone does not say which CLIP they are of, so its index is its own.
    """
    from torch import nn

    from speechclip.model.encoders.base import weights_fingerprint

    if model.network.clip is not None:
        return f"clip:{model.network.clip.description['weights']}"
    return f"head:{weights_fingerprint(nn.ModuleDict(model.network.trained_modules()))}"


class ImageIndex:
    """An index that was opened. Use :meth:`open`; ``ids`` and ``files`` are row by row, ``files`` may be empty."""

    def __init__(
        self, folder: Path, info: IndexInfo, ids: list[str], files: list[str], vectors: NDArray[Any], lists: Any
    ) -> None:
        self.folder, self.info, self.ids, self.files, self.vectors = folder, info, ids, files, vectors
        self._lists = InvertedFile(lists, vectors, info.probes) if lists is not None else None

    @classmethod
    def open(cls, path: str | Path) -> ImageIndex:
        """Read an index folder.

        Raises:
            UserError: none there, of another format, damaged, or one that needs faiss where that is not installed.
        """
        folder = Path(path)
        info = read_info(folder)
        items = _read_json(folder / ITEMS)
        ids, files = items.get("ids"), items.get("files")
        vectors = _read_vectors(folder / VECTORS, mapped=info.kind == INVERTED)
        if not isinstance(ids, list) or not isinstance(files, list) or len(files) not in (0, len(ids)):
            raise UserError(f"{folder / ITEMS}: damaged: needs the lists ids and files")
        if vectors.shape != (info.count, info.dim) or len(ids) != info.count:
            raise UserError(
                f"{folder}: {len(ids)} ids and vectors of shape {vectors.shape}, {INFO} says {info.count} of {info.dim}"
            )
        lists = read_inverted_file(folder / LISTS) if info.kind == INVERTED else None
        if lists is not None and (lists.ntotal, lists.d) != vectors.shape:
            raise UserError(f"{folder / LISTS}: damaged: of {lists.ntotal} vectors, not {info.count}")
        return cls(folder, info, [str(item) for item in ids], [str(item) for item in files], vectors, lists)

    def __len__(self) -> int:
        return self.info.count

    def search(self, queries: Floats, top_k: int, exact: bool = False) -> tuple[Rows, Floats]:
        """The ``top_k`` nearest images of unit queries [Q, D]: rows [Q, k] and cosines [Q, k], best first.

        exact: over all vectors, whatever kind of index it is. Raises UserError for queries of another width.
        """
        if queries.ndim != 2 or queries.shape[1] != self.info.dim:
            raise UserError(f"{self.folder}: of {self.info.dim} dimensions, the query has {queries.shape[-1]}")
        if self._lists is None or exact:
            return exact_search(self.vectors, queries, top_k)
        return self._lists.search(queries, top_k)

    def set_probes(self, probes: int) -> None:
        """Look into so many lists from now on: more find more, and take longer. Nothing to an exact index."""
        if self._lists is not None:
            self._lists.index.nprobe = min(max(1, probes), self.info.lists)

    def check_model(self, model: SpeechCLIP, name: str | Path) -> None:
        """Raise UserError for a model whose joint space is another than the indexed images'."""
        space = joint_space(model)
        if space != self.info.space:
            raise UserError(
                f"{self.folder}: an index of another model: {self.info.model} ({self.info.space}), "
                f"{name} has {space}; index the images with it first"
            )

    def thumbnail(self, row: int) -> Path | None:
        """The thumbnail of a row, or None where there is none. Never a file outside the index."""
        if not self.info.thumbnails or not 0 <= row < len(self):
            return None
        path = thumbnail_path(self.folder, row).resolve()
        return path if path.is_file() and path.is_relative_to(self.folder.resolve()) else None

    def model_path(self) -> str:
        """Where the model of this index should be. Raises UserError where it is not there any more."""
        moved = self.folder.resolve() / self.info.model
        if moved.exists():
            return os.path.relpath(moved)
        if is_hub_id(self.info.model):
            return self.info.model
        raise UserError(f"{self.folder}: its model is not at {os.path.normpath(moved)} any more: name it with --model")


def thumbnail_path(folder: Path, row: int) -> Path:
    """Where the thumbnail of a row is kept, a thousand in a folder."""
    return folder / THUMBNAILS / f"{row // 1000:04d}" / f"{row:07d}.jpg"


def model_reference(path: str | Path, index: Path) -> str:
    """How an index names its model: relative to its folder, so that both may move together, or as on the hub."""
    return os.path.relpath(Path(path).resolve(), index.resolve()) if Path(path).exists() else str(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; an index is made by: speechclip index") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or truncated") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: damaged: not a JSON mapping")
    return loaded


def read_info(folder: Path) -> IndexInfo:
    """What ``index.json`` of a folder says. Raises UserError where it is missing, damaged or of another format."""
    content = _read_json(folder / INFO)
    if content.get("format") != FORMAT:
        raise UserError(f"{folder / INFO}: of format {content.get('format')}, not {FORMAT}: index the images again")
    try:
        info = IndexInfo(**content)
    except TypeError as error:
        raise UserError(f"{folder / INFO}: damaged: {error}") from error
    numbers = (info.count, info.dim, info.probes)
    if info.kind not in (EXACT, INVERTED) or not all(isinstance(number, int) for number in numbers):
        raise UserError(f"{folder / INFO}: damaged: kind {info.kind}, count, dim and probes {numbers}")
    return info


def _read_vectors(path: Path, mapped: bool) -> NDArray[Any]:
    try:
        vectors = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: missing, damaged or truncated") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
        raise UserError(f"{path}: damaged: not an array of floating point numbers")
    return vectors
