"""An index of images on disk.

A folder with these files:

* ``index.json``: see :class:`IndexInfo`.
* ``items.json``: ids and files, row by row.
* ``vectors.npy``: unit vectors, in single precision for exact search and else in half precision, memory-mapped.
* ``lists.faiss``: the inverted file of a large index.
* ``thumbnails/<row // 1000>/<row>.jpg``.
* ``not_indexed.tsv``: files that are not indexed, with the reasons; absent if all are.

Only numbers and text are read. ``lists.faiss`` is read by faiss's native code: open only indexes from people you trust.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.common.files import is_hub_id, read_json
from speechclip.search.neighbours import InvertedFile, exact_search, read_inverted_file

if TYPE_CHECKING:
    from speechclip.api import SpeechCLIP
    from speechclip.search.neighbours import Floats, Rows

INFO, ITEMS, VECTORS, LISTS, THUMBNAILS = "index.json", "items.json", "vectors.npy", "lists.faiss", "thumbnails"
NOT_INDEXED = "not_indexed.tsv"
FORMAT = 1
EXACT, INVERTED = "exact", "ivf"


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """The content of ``index.json``.

    Attributes:
        kind: "exact" or "ivf".
        count: number of vectors.
        dim: dimension of the vectors.
        space: fingerprint of the joint space, see :func:`joint_space`.
        model: path of the model relative to the folder, or its id on the hub.
        thumbnails: whether the index has thumbnails.
        lists: number of lists of ivf.
        probes: number of lists that a query searches.
        not_indexed: number of files of the image folder that are not indexed.
        provenance: command, seed, commit and versions.
        format: version of the file format.
    """

    kind: str
    count: int
    dim: int
    space: str
    model: str
    thumbnails: bool
    lists: int = 0
    probes: int = 0
    not_indexed: int = 0
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT


def joint_space(model: SpeechCLIP) -> str:
    """Return the fingerprint of a model's joint space: ``clip:<hash>``, or ``weights:<hash>`` without a CLIP.

    Models that were trained with the same CLIP share its joint space and so can share an index. A model that was
    trained on precomputed embeddings does not know their CLIP, so only this model can use its index.
    """
    from torch import nn

    from speechclip.model.encoders.base import weights_fingerprint

    if model.network.clip is not None:
        return f"clip:{model.network.clip.description['weights']}"
    return f"weights:{weights_fingerprint(nn.ModuleDict(model.network.trained_modules()))}"


class ImageIndex:
    """An index that was opened with :meth:`open`.

    Attributes:
        folder: the folder of the index.
        info: the content of ``index.json``.
        ids: ids of the images, row by row.
        files: image files, row by row; may be empty.
        vectors: [N, D], L2-normalised.
    """

    def __init__(
        self, folder: Path, info: IndexInfo, ids: list[str], files: list[str], vectors: NDArray[Any], lists: Any
    ) -> None:
        self.folder, self.info, self.ids, self.files, self.vectors = folder, info, ids, files, vectors
        self._lists = InvertedFile(lists, vectors, info.probes) if lists is not None else None

    @classmethod
    def open(cls, path: str | Path) -> ImageIndex:
        """Open an index folder.

        Raises:
            UserError: the folder is not an index, has another format or is damaged, or faiss is needed and missing.
        """
        folder = Path(path)
        info = read_info(folder)
        items = read_json(folder / ITEMS)
        ids, files = items.get("ids"), items.get("files")
        vectors = _read_vectors(folder / VECTORS, mapped=info.kind == INVERTED)
        if not isinstance(ids, list) or not isinstance(files, list) or len(files) not in (0, len(ids)):
            raise UserError(f"{folder / ITEMS}: damaged: needs the lists ids and files. Index the images again.")
        if vectors.shape != (info.count, info.dim) or len(ids) != info.count:
            raise UserError(
                f"{folder}: damaged: {len(ids)} ids and vectors of shape {vectors.shape}, {INFO} has {info.count} of "
                f"{info.dim}. Index the images again."
            )
        lists = read_inverted_file(folder / LISTS) if info.kind == INVERTED else None
        if lists is not None and (lists.ntotal, lists.d) != vectors.shape:
            raise UserError(
                f"{folder / LISTS}: damaged: {lists.ntotal} vectors, not {info.count}. Index the images again."
            )
        return cls(folder, info, [str(item) for item in ids], [str(item) for item in files], vectors, lists)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.info.count

    def search(self, queries: Floats, top_k: int, exact: bool = False) -> tuple[Rows, Floats]:
        """Find the nearest images of queries.

        Args:
            queries: [Q, D], L2-normalised.
            top_k: number of images per query.
            exact: compare with all vectors, also in an index of kind "ivf".

        Returns:
            Rows of the index [Q, k] and cosines [Q, k], best first.

        Raises:
            UserError: the queries have another dimension.
        """
        if queries.ndim != 2 or queries.shape[1] != self.info.dim:
            raise UserError(f"{self.folder}: {self.info.dim} dimensions, the query has {queries.shape[-1]}")
        if self._lists is None or exact:
            return exact_search(self.vectors, queries, top_k)
        return self._lists.search(queries, top_k)

    def set_probes(self, probes: int) -> None:
        """Set the number of lists that a query searches. More lists find more and take longer. No effect on "exact"."""
        if self._lists is not None:
            self._lists.index.nprobe = min(max(1, probes), self.info.lists)

    def check_model(self, model: SpeechCLIP, name: str | Path) -> None:
        """Check that a model has the joint space of the indexed images.

        Raises:
            UserError: it has another one.
        """
        space = joint_space(model)
        if space != self.info.space:
            raise UserError(
                f"{self.folder}: built with another model: {self.info.model} ({self.info.space}), "
                f"{name} has {space}. Index the images with {name}."
            )

    def thumbnail(self, row: int) -> Path | None:
        """Return the thumbnail of a row, or None if it is missing. The file is always inside the index."""
        if not self.info.thumbnails or not 0 <= row < len(self):
            return None
        path = thumbnail_path(self.folder, row).resolve()
        return path if path.is_file() and path.is_relative_to(self.folder.resolve()) else None

    def model_path(self) -> str:
        """Return the path or hub id of the index's model.

        Raises:
            UserError: the path does not exist.
        """
        moved = self.folder.resolve() / self.info.model
        if moved.exists():
            return os.path.relpath(moved)
        if is_hub_id(self.info.model):
            return self.info.model
        raise UserError(
            f"{self.folder}: its model {os.path.normpath(moved)} does not exist. Give its new place with --model."
        )


def thumbnail_path(folder: Path, row: int) -> Path:
    """Return the path of a row's thumbnail. A folder holds a thousand."""
    return folder / THUMBNAILS / f"{row // 1000:04d}" / f"{row:07d}.jpg"


def model_reference(path: str | Path, index: Path) -> str:
    """Return the name of a model that an index stores.

    It is relative to the index's folder, so that both can move together, or an id of the hub.
    """
    return os.path.relpath(Path(path).resolve(), index.resolve()) if Path(path).exists() else str(path)


def read_info(folder: Path) -> IndexInfo:
    """Read ``index.json`` of a folder.

    Raises:
        UserError: the file is missing, damaged or of another format.
    """
    if not (folder / INFO).is_file():
        raise UserError(f"{folder / INFO}: is missing. Create an index with: speechclip index")
    content = read_json(folder / INFO)
    if content.get("format") != FORMAT:
        raise UserError(f"{folder / INFO}: format {content.get('format')}, not {FORMAT}. Index the images again.")
    try:
        info = IndexInfo(**content)
    except TypeError as error:
        raise UserError(f"{folder / INFO}: damaged: {error}. Index the images again.") from error
    numbers = (info.count, info.dim, info.probes)
    if info.kind not in (EXACT, INVERTED) or not all(isinstance(number, int) for number in numbers):
        raise UserError(f"{folder / INFO}: damaged: kind {info.kind}, count, dim and probes {numbers}")
    return info


def _read_vectors(path: Path, mapped: bool) -> NDArray[Any]:
    try:
        vectors = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: missing, damaged or truncated. Index the images again.") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
        raise UserError(f"{path}: damaged: not an array of floats. Index the images again.")
    return vectors
