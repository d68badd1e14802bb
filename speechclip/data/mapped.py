"""Arrays and columns of strings in memory-mapped ``.npy`` files: the memory of a process does not grow with a corpus.

A map is a hidden folder next to the file or folder that it is built from. Its name ends with a stamp of that source, so
a changed source gets another map. One process builds it, the others wait. Sources below :data:`MAP_BYTES` stay in
memory: the classes here are the same, and nothing is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from speechclip.common.errors import writing
from speechclip.common.files import sync

logger = logging.getLogger(__name__)

MAP_BYTES = 4 << 20  # sources and arrays of this size or more are mapped
_BLOCK_ROWS = 1 << 13  # strings that are decoded at a time
_MAX_WIDTH = 256  # bytes of a string in a table of equal widths

Array = NDArray[Any]
_T = TypeVar("_T")


def is_large(size: int) -> bool:
    """Return whether a source or an array of so many bytes is mapped."""
    return size >= MAP_BYTES


class Column(Sequence[str]):
    """Strings as UTF-8 in one array of bytes.

    Args:
        data: the bytes of all strings.
        starts: [N], the first byte of each string.
        ends: [N], one more than the last byte of each string.
    """

    def __init__(self, data: Array, starts: Array, ends: Array) -> None:
        self.data, self.starts, self.ends = data, starts, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> Column:
        """Return a column in memory."""
        encoded = [text.encode() for text in strings]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls.at_offsets(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def at_offsets(cls, data: Array, offsets: Array) -> Column:
        """Return the column of adjacent strings, with N + 1 offsets."""
        return cls(data, offsets[:-1], offsets[1:])

    def __len__(self) -> int:
        """Return the number of strings."""
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: Any) -> Any:
        """Return a string, or a list of strings for a slice."""
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1:
                return list(self._decoded(start, max(start, stop)))
            return [self[number] for number in range(start, stop, step)]
        return self.raw(at).decode()

    def raw(self, at: int) -> bytes:
        """Return the bytes of a string."""
        return self.data[int(self.starts[at]) : int(self.ends[at])].tobytes()

    def __iter__(self) -> Iterator[str]:
        """Yield all strings."""
        for start in range(0, len(self), _BLOCK_ROWS):
            yield from self._decoded(start, min(start + _BLOCK_ROWS, len(self)))

    def _decoded(self, start: int, stop: int) -> Iterator[str]:
        starts, ends = self.starts[start:stop], self.ends[start:stop]
        if not len(starts):
            return
        first, last = int(starts.min()), int(ends.max())
        if last - first > 4 * int((ends - starts).sum()) + _BLOCK_ROWS:  # scattered rows
            raw_data = self.data.data
            yield from (str(raw_data[a:b], "utf-8") for a, b in zip(starts.tolist(), ends.tolist()))
            return
        raw = self.data[first:last].tobytes()
        yield from (raw[a:b].decode() for a, b in zip((starts - first).tolist(), (ends - first).tolist()))

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence holds the same strings."""
        if isinstance(other, Column):
            return self is other or self.same(other)
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the number of strings and the first ones."""
        return f"Column({len(self)}: {', '.join(self[:3])})"

    def same(self, other: Column) -> bool:
        """Return whether another column holds the same strings, without decoding them."""
        if len(self) != len(other):
            return False
        for start in range(0, len(self), 1 << 16):
            part = slice(start, start + (1 << 16))
            if not np.array_equal(self.ends[part] - self.starts[part], other.ends[part] - other.starts[part]):
                return False
            if not np.array_equal(self.packed(part)[0], other.packed(part)[0]):
                return False
        return True

    def packed(self, part: slice) -> tuple[Array, Array]:
        """Return the bytes of some strings without gaps, and the length of each."""
        starts, ends = self.starts[part], self.ends[part]
        lengths = ends - starts
        if lengths.all() and len(starts) and (starts[1:] >= ends[:-1]).all():
            first, last = int(starts[0]), int(ends[-1])
            if last - first == int(lengths.sum()):
                return self.data[first:last], lengths
            steps = np.zeros(last - first + 1, np.int8)  # 1 where a string begins, -1 where it ends
            steps[starts - first] = 1
            steps[ends - first] -= 1
            return self.data[first:last][np.cumsum(steps[:-1], dtype=np.int8).view(bool)], lengths
        offsets = np.cumsum(lengths) - lengths
        return self.data[np.arange(int(lengths.sum())) + np.repeat(starts - offsets, lengths)], lengths

    def take(self, rows: Array) -> Column:
        """Return the strings at some positions. The bytes are shared."""
        return Column(self.data, gathered(self.starts, rows), gathered(self.ends, rows))

    def find(self, text: str) -> int:
        """Return the position of a string in a sorted column, or -1."""
        wanted = text.encode()
        at = bisect_left(range(len(self)), wanted, key=self.raw)
        return at if at < len(self) and self.raw(at) == wanted else -1

    def width(self, part: slice = slice(None)) -> int:
        """Return the bytes of the longest of some strings."""
        return int((self.ends[part] - self.starts[part]).max(initial=0))


class StringSet(Set[str]):
    """A growing set of strings in about 40 bytes each. Two strings with one 64-bit hash would count as one."""

    def __init__(self) -> None:
        self._columns: list[Column] = []
        self._sorted, self._recent = np.empty(0, np.uint64), set[int]()
        self._length = 0

    def update(self, strings: Iterable[str]) -> None:
        """Add strings."""
        fresh = [item for item in strings if item not in self]
        self._columns.append(Column.of(fresh))
        self._recent |= {_hash(item) for item in fresh}
        self._length += len(fresh)
        if len(self._recent) > 1 << 16:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted, self._recent = np.sort(np.concatenate([self._sorted, recent])), set()

    def __contains__(self, item: object) -> bool:
        """Return whether a string is in the set."""
        if not self._length or not isinstance(item, str):
            return False
        number = _hash(item)
        at = int(np.searchsorted(self._sorted, np.uint64(number)))
        return number in self._recent or (at < len(self._sorted) and int(self._sorted[at]) == number)

    def __iter__(self) -> Iterator[str]:
        """Yield the strings in the order in which they were added."""
        return (item for column in self._columns for item in column)

    def __len__(self) -> int:
        """Return the number of strings."""
        return self._length


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class ArrayWriter:
    """A one-dimensional or two-dimensional array that grows block by block.

    Args:
        path: the ``.npy`` file; None: the array stays in memory.
        dtype: of the array.
        columns: of a two-dimensional array; None for one dimension.
    """

    def __init__(self, path: Path | None, dtype: DTypeLike, columns: int | None = None) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._shape: tuple[int, ...] = () if columns is None else (columns,)
        self._parts: list[Array] = []
        self.length = 0
        self._file = None if path is None else path.open("wb")
        self._start = self._write_header()

    def _write_header(self) -> int:
        """Write the header, which has the same size for every length."""
        if self._file is None:
            return 0
        shape = (self.length, *self._shape)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def append(self, block: Array) -> None:
        """Append rows."""
        block = np.ascontiguousarray(block, self._dtype)
        self.length += len(block)
        if self._file is None:
            self._parts.append(block.copy())
        else:
            block.tofile(self._file)

    def finish(self) -> Array:
        """Return the whole array: in memory, or mapped for reading."""
        if self._file is None or self._path is None:
            return np.concatenate([np.empty((0, *self._shape), self._dtype), *self._parts])
        self._file.seek(0)
        if self._write_header() != self._start:
            raise AssertionError("the header changed its size")
        self._file.close()
        sync(self._path)
        return open_array(self._path)


class ColumnWriter:
    """A column that grows block by block.

    Args:
        folder: of the files; None: the column stays in memory.
        name: of the column.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        paths = [None if folder is None else folder / f"{name}.{kind}.npy" for kind in ("bytes", "offsets")]
        self._data, self._offsets = ArrayWriter(paths[0], np.uint8), ArrayWriter(paths[1], np.int64)
        self._offsets.append(np.zeros(1, np.int64))

    def append(self, data: Array, lengths: Array) -> None:
        """Append strings: their bytes without gaps, and the length of each."""
        self._offsets.append(self._data.length + np.cumsum(lengths))
        self._data.append(data)

    def append_strings(self, strings: Iterable[str]) -> None:
        """Append strings."""
        encoded = [text.encode() for text in strings]
        self.append(np.frombuffer(b"".join(encoded), np.uint8), np.array([len(item) for item in encoded], np.int64))

    def finish(self) -> Column:
        """Return the column."""
        return Column.at_offsets(self._data.finish(), self._offsets.finish())


class Lookup:
    """Positions of many strings in a sorted column."""

    def __init__(self, column: Column) -> None:
        self._width = column.width()
        self._long = {item: at for at, item in enumerate(column)} if self._width > _MAX_WIDTH else None
        if self._long is not None:  # a table of equal widths would be large
            return
        table = new_array((len(column), max(1, self._width)), np.uint8)
        for start in range(0, len(column), 1 << 16):
            part = slice(start, start + (1 << 16))
            table[part] = padded(column, part, max(1, self._width))
        self._table = table.view(f"S{max(1, self._width)}").reshape(-1)

    def rows(self, strings: Column, part: slice = slice(None)) -> NDArray[np.int64]:
        """Return the position of each of some strings, or -1."""
        if self._long is not None:
            return np.array([self._long.get(item, -1) for item in strings[part]], np.int64)
        lengths = strings.ends[part] - strings.starts[part]
        short = padded(strings, part, max(1, self._width)).view(f"S{max(1, self._width)}").reshape(-1)
        # adjacent strings are often equal or in order: a few distinct ones are searched
        distinct, inverse = np.unique(short, return_inverse=True)
        found = np.searchsorted(self._table, distinct)
        found[found == len(self._table)] = 0
        found = np.where(self._table[found] == distinct, found, -1) if len(self._table) else np.full(len(found), -1)
        result: NDArray[np.int64] = np.where(lengths <= self._width, found[inverse.reshape(-1)], -1)
        return result


def padded(column: Column, part: slice, width: int) -> NDArray[np.uint8]:
    """Return the first bytes of some strings as rows of equal width, [n, width], padded with zeros."""
    starts, lengths = column.starts[part], column.ends[part] - column.starts[part]
    rows = np.zeros((len(starts), width), np.uint8)
    if len(column.data):
        for at in range(width):
            there = lengths > at
            rows[there, at] = column.data[starts[there] + at]
    return rows


def open_array(path: Path) -> Array:
    """Map a ``.npy`` file for reading. An empty array is in memory."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError:  # an empty file cannot be mapped
        return np.asarray(np.load(path, allow_pickle=False))


def open_column(folder: Path, name: str) -> Column:
    """Map a column that :class:`ColumnWriter` wrote."""
    return Column.at_offsets(open_array(folder / f"{name}.bytes.npy"), open_array(folder / f"{name}.offsets.npy"))


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an array of zeros: in memory, or in a temporary file without a name (in ``TMPDIR``) if it is large."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if not is_large(size):
        return np.zeros(shape, dtype)
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryFile(prefix="speechclip.") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and not a signal later
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))


def gathered(array: Array, rows: Array) -> Array:
    """Return some rows of an array, in a temporary map if they are many."""
    found = new_array((len(rows), *array.shape[1:]), array.dtype)
    step = max(1, (1 << 22) // max(1, int(np.prod(array.shape[1:], dtype=np.int64))))
    for start in range(0, len(rows), step):
        found[start : start + step] = array[rows[start : start + step]]
    return found


def release(*arrays: Array) -> None:
    """Give the pages of mapped arrays back, after they were read once from start to end. The files stay cached."""
    for array in arrays:
        base: Any = array
        while base is not None and not hasattr(base, "madvise"):
            base = getattr(base, "base", None)
        if base is not None and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError, ValueError):
                import mmap

                base.madvise(mmap.MADV_DONTNEED)


def files_stamp(paths: Iterable[Path], version: str) -> str:
    """Return 16 hexadecimal digits from names, sizes and modification times of files, and a version of the format."""
    digest = hashlib.sha256(version.encode())
    for path in paths:
        status = path.stat()
        digest.update(f"\n{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def mapped_folder(
    name: Path, stamp: Callable[[], str], build: Callable[[Path], None], use: Callable[[Path], Any]
) -> Any:
    """Return ``use(folder)`` of a map, which is built first if it is missing or its source has changed.

    Several processes may call this: one builds, the others wait. The folder appears as a whole. Without permission to
    write next to the source, the map is built in a temporary folder for this process alone.

    Args:
        name: path of the map, to which the stamp is added.
        stamp: returns the stamp of the source.
        build: fills an empty folder from the source.
        use: opens the files of the folder.
    """
    folder = name.with_name(f"{name.name}-{stamp()}")
    with contextlib.suppress(FileNotFoundError):  # missing, or replaced while it is opened
        return use(folder)
    try:
        lock = name.with_name(f"{name.name}.lock").open("a")
    except OSError:
        logger.info("%s: cannot be written. Each process builds its own table in %s.", name, tempfile.gettempdir())
        with tempfile.TemporaryDirectory(prefix="speechclip.") as own:
            build(Path(own))
            return use(Path(own))  # mapped files live on without their names
    with lock:
        alone = False
        with contextlib.suppress(OSError):  # a file system without locks: two builders write the same
            fcntl.flock(lock, fcntl.LOCK_EX)
            alone = True
        while True:
            folder = name.with_name(f"{name.name}-{stamp()}")
            with contextlib.suppress(FileNotFoundError):
                return use(folder)
            _build(name, folder, build, alone)


def _build(name: Path, folder: Path, build: Callable[[Path], None], alone: bool) -> None:
    """Build a map in a temporary folder, and rename it. If no other builder is at work, remove earlier maps first."""
    part = name.with_name(f"{name.name}.{os.getpid()}.part")
    for pattern in (f"{name.name}.*.part", f"{name.name}-*") if alone else ():
        for leftover in name.parent.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        with writing(name):
            part.mkdir()
            build(part)
            with contextlib.suppress(FileExistsError):
                os.rename(part, folder)
            sync(name.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
