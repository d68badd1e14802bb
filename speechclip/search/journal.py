"""Embeddings that are already known: those of the present index, and those of a run that was killed.

A run appends what it embeds to ``<index>.embedded.part``, a folder next to the index. The next run continues from it.
A finished run removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError, writing
from speechclip.common.files import damaged_file, make_folder, read_json
from speechclip.search.index import SOURCES, VECTORS, IndexInfo, read_info, thumbnail_path
from speechclip.search.items import IMAGE, RECORDING, read_items

RECORDS, FLOATS = "records.jsonl", "vectors.f32"
IN_INDEX, IN_JOURNAL = 0, 1  # numbers of tables


class Stat(NamedTuple):
    """Size in bytes and time of the last change in nanoseconds of a file."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stat:
        """Return those of a file.

        Raises:
            OSError: the file is missing.
        """
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


class Known(NamedTuple):
    """The place of the embeddings of one content: some rows of a table of :meth:`Journal.tables`.

    Attributes:
        table: IN_INDEX or IN_JOURNAL.
        first: the first row.
        rows: number of rows: one for a picture, one per window for a recording.
        spans: start and end of each window in seconds; empty for a picture.
    """

    table: int
    first: int
    rows: int
    spans: tuple[tuple[float, float], ...] = ()


class Journal:
    """The known embeddings by content, and a file to which new ones are appended.

    The embeddings themselves stay on disk.

    Args:
        index: folder of the index.
        dim: dimension of the vectors.
        keys: for each kind, a string that identifies the model and the settings. Embeddings with another key are not
            known.
    """

    def __init__(self, index: Path, dim: int, keys: dict[str, str]) -> None:
        self.folder, self.dim, self.keys = index.with_name(f"{index.name}.embedded.part"), dim, keys
        self.resumed = 0  # contents that an earlier run left
        self._known: dict[tuple[str, str], Known] = {}
        self._digests: dict[tuple[str, Stat], str] = {}
        self._index: Path | None = None
        self._rows = 0  # in the file of vectors
        self._records: IO[str] | None = None
        self._floats: IO[bytes] | None = None

    def add_index(self, index: Path) -> None:
        """Add the embeddings of an index, if it lists its files and its keys are the same.

        Raises:
            UserError: the index is damaged.
        """
        if not (index / SOURCES).is_file():
            return
        info, items, sources = read_info(index), read_items(index), read_json(index / SOURCES)
        if wrong := damaged_file(index, all_files=True):
            raise UserError(
                f"{index / wrong}: damaged: its checksum is wrong. Index the files again, without --update."
            )
        if info.dim != self.dim:
            return
        self._index = index
        ranges: dict[str, tuple[int, int]] = {}  # of the rows of a file
        for row, item in enumerate(sources["rows"]):
            ranges[item] = ranges.get(item, (row,))[0], row + 1
        first = info.count - info.recordings
        for item, (kind, path, size, changed, digest) in sources["files"].items():
            if self.keys.get(kind) != _key_of(info, kind):
                continue
            self._digests[path, Stat(size, changed)] = digest
            if item in ranges:
                start, end = ranges[item]
                spans = tuple(items.spans[start - first : end - first]) if kind == RECORDING else ()
                self._known[kind, digest] = Known(IN_INDEX, start, end - start, spans)

    def resume(self) -> None:
        """Add what an earlier run left, and open the files to append to them. Other content is removed."""
        make_folder(self.folder)
        records, floats = self.folder / RECORDS, self.folder / FLOATS
        kept, rows = self._read(records, floats)
        with writing(self.folder):
            for path, size in ((records, kept), (floats, 4 * self.dim * rows)):
                with path.open("ab") as file:
                    file.truncate(size)
            self._records, self._floats = records.open("a", encoding="utf-8"), floats.open("ab")
        self._rows = rows

    def _read(self, records: Path, floats: Path) -> tuple[int, int]:
        """Read the complete records. Return their bytes and the number of their vectors."""
        if not records.is_file() or not floats.is_file():
            return 0, 0
        stored = floats.stat().st_size // (4 * self.dim)
        size = rows = 0
        for line in records.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
                kind, count, spans = entry["kind"], entry["count"], entry["spans"]
                if entry["dim"] != self.dim or not line.endswith(b"\n") or rows + count > stored:
                    break
            except (ValueError, KeyError, TypeError):  # the run was killed while it wrote this line
                break
            if entry["key"] == self.keys.get(kind):
                self._known[kind, entry["digest"]] = Known(
                    IN_JOURNAL, rows, count, tuple((a, b) for a, b in spans)
                )  # fmt: skip
                self._digests[entry["path"], Stat(*entry["stat"])] = entry["digest"]
                self.resumed += 1
            size, rows = size + len(line), rows + count
        return size, rows

    def append(
        self, kind: str, path: str, stat: Stat, digest: str, vectors: NDArray[Any],
        spans: tuple[tuple[float, float], ...] = (), thumbnail: bytes | None = None,
    ) -> None:  # fmt: skip
        """Add the embeddings of one file. :meth:`flush` writes them to the disk."""
        assert self._records is not None and self._floats is not None
        with writing(self.folder):
            if thumbnail is not None:
                place = self._thumbnail(digest)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(thumbnail)
            self._floats.write(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
            entry = {
                "kind": kind, "key": self.keys[kind], "dim": self.dim, "digest": digest, "path": path,
                "stat": list(stat), "count": len(vectors), "spans": list(spans),
            }  # fmt: skip
            self._records.write(json.dumps(entry) + "\n")
        self._known[kind, digest] = Known(IN_JOURNAL, self._rows, len(vectors), spans)
        self._digests[path, stat] = digest
        self._rows += len(vectors)

    def flush(self) -> None:
        """Write the vectors, and then the records that name them, to the disk."""
        assert self._records is not None and self._floats is not None
        with writing(self.folder):
            for file in (self._floats, self._records):
                file.flush()
                os.fsync(file.fileno())

    def digest_of(self, path: str, stat: Stat) -> str | None:
        """Return the digest of a file that has not changed since it was embedded."""
        return self._digests.get((path, stat))

    def get(self, kind: str, digest: str) -> Known | None:
        """Return the embeddings of a content."""
        return self._known.get((kind, digest))

    def tables(self) -> list[NDArray[Any]]:
        """Return the vectors of the present index and those of the journal, memory-mapped: IN_INDEX and IN_JOURNAL."""
        self.flush()
        none, floats = np.empty((0, self.dim), np.float32), self.folder / FLOATS
        return [
            none if self._index is None else np.load(self._index / VECTORS, mmap_mode="r", allow_pickle=False),
            np.memmap(floats, np.float32, "r", shape=(self._rows, self.dim)) if self._rows else none,
        ]

    def thumbnail(self, digest: str) -> Path:
        """Return the path of the thumbnail of a known picture."""
        known = self._known[IMAGE, digest]
        if known.table == IN_INDEX:
            assert self._index is not None
            return thumbnail_path(self._index, known.first)
        return self._thumbnail(digest)

    def has_records(self) -> bool:
        """Return whether anything was appended by this run or by an earlier one."""
        self.close()
        records = self.folder / RECORDS
        return records.is_file() and records.stat().st_size > 0

    def close(self) -> None:
        """Close the files. They stay for the next run."""
        for file in (self._floats, self._records):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def remove(self) -> None:
        """Remove the folder: its content is in the index."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _thumbnail(self, digest: str) -> Path:
        return self.folder / "thumbnails" / digest[:2] / f"{digest}.jpg"


def _key_of(info: IndexInfo, kind: str) -> str:
    return info.space if kind == IMAGE else info.speech


def check_updatable(index: Path) -> dict[str, Any]:
    """Return the content of ``sources.json`` of an index.

    Raises:
        UserError: the index is missing, or was not made from files.
    """
    read_info(index)
    if not (index / SOURCES).is_file():
        raise UserError(f"{index}: not made from files. Index them again, without --update.")
    content = read_json(index / SOURCES)
    if not isinstance(content.get("files"), dict) or not isinstance(content.get("rows"), list):
        raise UserError(f"{index / SOURCES}: damaged. Index the files again, without --update.")
    return content
