"""An index of pictures and recordings on disk.

A folder with these files:

* ``index.json``: see :class:`IndexInfo`.
* ``items.json``: ids, files, time windows and duplicates, row by row.
* ``vectors.npy``: unit vectors, in single precision for exact search and else in half precision, memory-mapped.
* ``lists.faiss``: the inverted file of a large index, memory-mapped.
* ``thumbnails/<row // 1000>/<row>.jpg``.
* ``sources.json``: the indexed folders, and size, time and checksum of every file, for ``speechclip index --update``.
* ``not_indexed.tsv``: files that are not indexed, with the reasons; absent if all are.
* ``SHA256SUMS``: the checksums of these files, except the thumbnails.

The rows of pictures come first, then those of recordings. A row of a recording is a window of time. Files with the same
content share their rows.

Only numbers and text are read. ``lists.faiss`` is read by faiss's native code: open only indexes from people you trust.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.checkpoint.published import PUBLISHED_MODELS
from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import SUMS, damaged_file, file_sha256, is_hub_id, previous, read_json
from speechclip.search.items import IMAGE, ITEMS, RECORDING, Duplicate, Items, read_items
from speechclip.search.neighbours import EXACT_UP_TO, InvertedFile, exact_search, read_ahead, read_inverted_file

if TYPE_CHECKING:
    from speechclip.api import SpeechCLIP
    from speechclip.search.neighbours import Floats, Rows

INFO, VECTORS, LISTS, THUMBNAILS = "index.json", "vectors.npy", "lists.faiss", "thumbnails"
NOT_INDEXED, SOURCES = "not_indexed.tsv", "sources.json"
FORMAT = 1
EXACT, INVERTED = "exact", "ivf"
_ATTEMPTS = 5  # to open an index that is replaced at the same time


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
        not_indexed: number of files that are not indexed.
        recordings: number of vectors of recordings; the others are of pictures.
        speech: fingerprint of the weights and the branch that embedded the recordings.
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
    recordings: int = 0
    speech: str = ""
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


def speech_fingerprint(model: SpeechCLIP, branch: str | None) -> str:
    """Return the fingerprint of everything that embeds recordings: the encoder, the head and the branch."""
    from torch import nn

    from speechclip.model.encoders.base import weights_fingerprint

    encoder = model.network.speech_encoder
    name = "" if encoder is None else encoder.description.get("weights", "")
    head = weights_fingerprint(nn.ModuleDict(model.network.trained_modules()))
    return f"{name}:{head}:{branch or model.branches[0]}"


class ImageIndex:
    """An index that was opened with :meth:`open`.

    Attributes:
        folder: the folder of the index.
        info: the content of ``index.json``.
        ids: ids, row by row.
        files: files, row by row; may be empty.
        vectors: [N, D], L2-normalised.
        version: identifies the content of the index; another index in the same folder has another version.
    """

    def __init__(
        self, folder: Path, info: IndexInfo, items: Items, vectors: NDArray[Any], lists: Any, version: str = ""
    ) -> None:
        self.folder, self.info, self.vectors, self.version = folder, info, vectors, version
        self.ids, self.files, self._items = items.ids, items.files, items
        self._lists = InvertedFile(lists, vectors, info.probes) if lists is not None else None
        self._place = _Place(folder)

    @classmethod
    def open(cls, path: str | Path) -> ImageIndex:
        """Open an index folder and verify its checksums. An index that is replaced at the same time is opened again.

        Raises:
            UserError: the folder is not an index, has another format or is damaged, or faiss is needed and missing.
        """
        for _ in range(_ATTEMPTS - 1):
            folder = present_folder(Path(path))
            with contextlib.suppress(OSError):
                before = os.stat(folder).st_ino
                try:
                    index = cls._read(folder)
                except UserError:
                    if os.stat(present_folder(Path(path))).st_ino == before:
                        raise
                    continue
                if index._place.inode == before == os.stat(folder).st_ino:
                    return index
        return cls._read(present_folder(Path(path)))

    @classmethod
    def _read(cls, folder: Path) -> ImageIndex:
        info = read_info(folder)
        items = read_items(folder)
        vectors = _read_vectors(folder / VECTORS, mapped=info.kind == INVERTED or info.count > EXACT_UP_TO)
        ids = items.ids
        if vectors.shape != (info.count, info.dim) or len(ids) != info.count:
            raise UserError(
                f"{folder}: damaged: {len(ids)} ids and vectors of shape {vectors.shape}, {INFO} has {info.count} of "
                f"{info.dim}. Index the files again."
            )
        if len(items.spans) != info.recordings:
            raise UserError(
                f"{folder / ITEMS}: damaged: {len(items.spans)} windows, {INFO} has {info.recordings}. "
                "Index the files again."
            )
        lists = read_inverted_file(folder / LISTS) if info.kind == INVERTED else None
        if lists is not None and (lists.ntotal, lists.d) != vectors.shape:
            raise UserError(
                f"{folder / LISTS}: damaged: {lists.ntotal} vectors, not {info.count}. Index the files again."
            )
        if wrong := damaged_file(folder, all_files=True):
            raise UserError(f"{folder / wrong}: damaged: its checksum is not that of {SUMS}. Index the files again.")
        if lists is not None:
            read_ahead(folder / LISTS)  # a check of large vectors may have taken its place in memory
        return cls(folder, info, items, vectors, lists, version_of(folder))

    def __len__(self) -> int:
        """Return the number of vectors."""
        return self.info.count

    @property
    def pictures(self) -> range:
        """The rows of pictures."""
        return range(self.info.count - self.info.recordings)

    @property
    def recordings(self) -> range:
        """The rows of recordings."""
        return range(self.info.count - self.info.recordings, self.info.count)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of items that the index has: "image", "recording" or both."""
        return tuple(kind for kind, rows in ((IMAGE, self.pictures), (RECORDING, self.recordings)) if len(rows))

    def rows_of(self, kind: str) -> range:
        """Return the rows of a kind."""
        return self.pictures if kind == IMAGE else self.recordings

    def file(self, row: int) -> str:
        """Return the file of a row; "" if it is not known."""
        return self.files[row] if self.files else ""

    def span(self, row: int) -> tuple[float, float] | None:
        """Return start and end of a recording's window in seconds; None for a picture."""
        first = self.recordings.start
        return self._items.spans[row - first] if row >= first else None

    def duplicates(self, row: int) -> tuple[Duplicate, ...]:
        """Return the other files with the content of a row."""
        return self._items.duplicates.get(row, ())

    def row(self, item: str) -> int:
        """Return the row of an id. The id of a duplicate has the row of its content.

        Raises:
            UserError: the index has no such id.
        """
        if item not in self._rows:
            raise UserError(f"{self.folder}: no item {item!r}. Give an id that a search prints.")
        return self._rows[item]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        others = {one.id: row for row, found in self._items.duplicates.items() for one in found}
        return {**others, **{item: row for row, item in enumerate(self.ids)}}

    def search(
        self, queries: Floats, top_k: int, exact: bool = False, rows: range | None = None
    ) -> tuple[Rows, Floats]:
        """Find the nearest items of queries.

        Args:
            queries: [Q, D], L2-normalised.
            top_k: number of items per query.
            exact: compare with all vectors, also in an index of kind "ivf".
            rows: the rows that are searched, such as :attr:`pictures`; None for all.

        Returns:
            Rows of the index [Q, k] and cosines [Q, k], best first.

        Raises:
            UserError: the queries have another dimension.
        """
        if queries.ndim != 2 or queries.shape[1] != self.info.dim:
            raise UserError(
                f"{self.folder}: {self.info.dim} dimensions, the query has {queries.shape[-1]}."
                " Use the model of the index."
            )
        within = range(len(self)) if rows is None else rows
        if self._lists is None or exact:
            found, cosines = exact_search(self.vectors[within.start : within.stop], queries, top_k)
            return found + within.start, cosines
        return self._lists.search(queries, top_k, None if len(within) == len(self) else within)

    def set_probes(self, probes: int) -> None:
        """Set the number of lists that a query searches. More lists find more and take longer. No effect on "exact"."""
        if self._lists is not None:
            self._lists.index.nprobe = min(max(1, probes), self.info.lists)

    def check_model(self, model: SpeechCLIP, name: str | Path) -> None:
        """Check that a model has the joint space of the index.

        Raises:
            UserError: it has another one.
        """
        space = joint_space(model)
        if space != self.info.space:
            raise UserError(
                f"{self.folder}: built with another model: {self.info.model} ({self.info.space}), "
                f"{name} has {space}. Index the files with {name}."
            )

    def thumbnail(self, row: int) -> Path | None:
        """Return the thumbnail of a row, or None if it is missing. The file is always inside the index."""
        if not self.info.thumbnails or not 0 <= row < len(self):
            return None
        path = thumbnail_path(self.folder, row).resolve()
        return path if path.is_file() and path.is_relative_to(self.folder.resolve()) else None

    def read_thumbnail(self, row: int) -> bytes | None:
        """Return the thumbnail (JPEG) of a row of the index as it was opened, None if it is missing.

        After the folder was replaced it is None, and never a thumbnail of the new index.
        """
        if not self.info.thumbnails or not 0 <= row < len(self):
            return None
        return self._place.read(thumbnail_path(Path(), row))

    def is_current(self) -> bool:
        """Return whether the folder still holds this index. If not, :meth:`open` opens the new one."""
        return self._place.is_current()

    def model_path(self) -> str:
        """Return the path or hub id of the index's model. See :func:`model_path`."""
        return model_path(self.folder, self.info)


def model_path(folder: Path, info: IndexInfo) -> str:
    """Return the path or hub id of an index's model.

    Raises:
        UserError: the path does not exist.
    """
    moved = folder.resolve() / info.model
    if moved.exists():
        return os.path.relpath(moved)
    from speechclip.checkpoint.pretrained import MINI  # imports torch, which a search for a like item does not need

    if is_hub_id(info.model) or info.model == MINI or info.model in PUBLISHED_MODELS:
        return info.model
    raise UserError(f"{folder}: its model {os.path.normpath(moved)} does not exist. Give its new place with --model.")


class _Place:
    """A folder that stays the same one after another folder got its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.inode = os.fstat(self._descriptor).st_ino

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._descriptor)

    def is_current(self) -> bool:
        try:
            return os.stat(self.folder).st_ino == self.inode
        except FileNotFoundError:  # between the two renames
            return True

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file below the folder. A symbolic link is not followed."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._descriptor)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()


def present_folder(path: Path) -> Path:
    """Return the folder of an index, or ``<path>.old`` if a kill left only this one. See `replace_folder`."""
    old = previous(path)
    return old if not path.exists() and (old / INFO).is_file() else path


def version_of(folder: Path) -> str:
    """Return 12 hexadecimal digits that identify the content of an index."""
    name = SUMS if (folder / SUMS).is_file() else INFO
    return file_sha256(folder / name)[:12]


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
    try:
        content = read_json(folder / INFO)
    except MissingFileError:  # replaced at this moment
        raise UserError(f"{folder / INFO}: is missing. Create an index with: speechclip index") from None
    if content.get("format") != FORMAT:
        raise UserError(f"{folder / INFO}: format {content.get('format')}, not {FORMAT}. Index the files again.")
    try:
        info = IndexInfo(**content)
    except TypeError as error:
        raise UserError(f"{folder / INFO}: damaged: {error}. Index the files again.") from error
    numbers = (info.count, info.dim, info.probes, info.recordings)
    if info.kind not in (EXACT, INVERTED) or not all(isinstance(number, int) for number in numbers):
        raise UserError(
            f"{folder / INFO}: damaged: kind {info.kind}, count, dim, probes and recordings {numbers}."
            " Build the index again."
        )
    return info


def _read_vectors(path: Path, mapped: bool) -> NDArray[Any]:
    try:
        vectors = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: missing, damaged or truncated. Index the files again.") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
        raise UserError(f"{path}: damaged: not an array of floats. Index the files again.")
    return vectors
