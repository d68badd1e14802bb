"""Kaldi data directories as columns, read block by block, so that the memory does not grow with the directory.

The functions here accept a valid directory in the usual form: sorted tables, ids in the same order in each. For
everything else they raise :class:`UnusualTable`. Then :mod:`speechclip.data.kaldi` reads the directory line by line,
which takes more memory and names every problem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speechclip.data.mapped import (
    ArrayWriter,
    Column,
    ColumnWriter,
    Lookup,
    new_array,
    open_array,
    open_column,
    padded,
)
from speechclip.data.utterances import ImageTable, UtteranceTable

VERSION = "data directory 1"
_BLOCK = 8 << 20  # bytes of a table in memory at a time
_SPACE, _TAB, _LINE = b" \t\n"
# bytes that need a closer look: NUL and ASCII white space other than a blank, a tab and a line feed
_ODD = np.isin(np.arange(256), [0, 11, 12, 13, 28, 29, 30, 31])
_NO_COLUMN = Column.of([])

Problem = Callable[[str], str | None]


class UnusualTable(Exception):
    """A table is not valid, or has a form that only the reader of single lines knows."""


class Lines(NamedTuple):
    """Keys and values of a block of lines: the bytes of all keys and their lengths, and the same for the values."""

    keys: Column
    values: Column


class Checks(NamedTuple):
    """The reasons why a key, and a value, cannot be in a table: functions of :mod:`speechclip.data.kaldi`."""

    key: Problem
    value: Problem


def write_columns(
    directory: Path, folder: Path | None, names: Sequence[str], checks: Checks
) -> tuple[UtteranceTable, Column]:
    """Read and check a data directory, and write its columns.

    Args:
        directory: the data directory.
        folder: receives the columns; None: they stay in memory.
        names: the optional tables that exist.
        checks: of keys and values.

    Returns:
        The utterances, and the files of the images.

    Raises:
        UnusualTable: see above.
    """
    try:
        return _write_columns(directory, folder, names, checks)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise UnusualTable(str(error)) from error


def _write_columns(
    directory: Path, folder: Path | None, names: Sequence[str], checks: Checks
) -> tuple[UtteranceTable, Column]:
    image_ids, files = _write_table(directory / "img.scp", folder, "img", checks, is_path=True)
    speaker_ids, spoken = _write_table(directory / "spk2utt", folder, "spk", checks)
    ids, wavs = _write_table(directory / "wav.scp", folder, "wav", checks, is_path=True)
    texts = _write_values(directory / "text", folder, ids, checks)
    clip_texts = _write_values(directory / "text_clip", folder, ids, checks) if "text_clip" in names else texts
    images = _write_codes(directory / "utt2img", folder, ids, image_ids, checks)
    used = np.zeros(len(image_ids), bool)
    for start in range(0, len(images), 1 << 20):
        used[images[start : start + (1 << 20)]] = True
    speakers = _write_codes(directory / "utt2spk", folder, ids, speaker_ids, checks)
    if not used.all() or not _lists_utterances(speaker_ids, spoken, ids, speakers):
        raise UnusualTable("an image without an utterance, or another spk2utt")
    language_ids, languages = _NO_COLUMN, None
    if "utt2lang" in names:
        language_ids = _distinct_values(directory / "utt2lang", folder, checks)
        languages = _write_codes(directory / "utt2lang", folder, ids, language_ids, checks)
    table = UtteranceTable(
        ids, wavs, texts, clip_texts, speaker_ids, speakers, image_ids, images, language_ids, languages
    )
    return table, files


def open_columns(folder: Path) -> tuple[UtteranceTable, ImageTable]:
    """Map the columns that :func:`write_columns` wrote."""
    texts = open_column(folder, "text")
    clip = open_column(folder, "text_clip") if (folder / "text_clip.bytes.npy").is_file() else texts
    languages = (folder / "utt2lang.npy").is_file()
    image_ids = open_column(folder, "img.ids")
    table = UtteranceTable(
        open_column(folder, "wav.ids"), open_column(folder, "wav"), texts, clip, open_column(folder, "spk.ids"),
        open_array(folder / "utt2spk.npy"), image_ids, open_array(folder / "utt2img.npy"),
        open_column(folder, "utt2lang.ids") if languages else _NO_COLUMN,
        open_array(folder / "utt2lang.npy") if languages else None,
    )  # fmt: skip
    return table, ImageTable(image_ids, open_column(folder, "img"))


def columns_of(tables: Mapping[str, Mapping[str, str]]) -> tuple[UtteranceTable, ImageTable]:
    """Return the columns, in memory, of valid tables that were read line by line."""
    order = sorted(tables["wav.scp"])

    def coded(name: str, known: Sequence[str]) -> NDArray[np.int64]:
        at = {key: number for number, key in enumerate(known)}
        return np.array([at[tables[name][key]] for key in order], dtype=np.int64)

    def column(name: str) -> Column:
        return Column.of(tables[name][key] for key in order)

    texts, images = column("text"), sorted(tables["img.scp"])
    speakers, languages = sorted(tables["spk2utt"]), sorted(set(tables.get("utt2lang", {}).values()))
    image_ids = Column.of(images)
    table = UtteranceTable(
        Column.of(order), column("wav.scp"), texts, column("text_clip") if "text_clip" in tables else texts,
        Column.of(speakers), coded("utt2spk", speakers), image_ids, coded("utt2img", images),
        Column.of(languages), coded("utt2lang", languages) if languages else None,
    )  # fmt: skip
    return table, ImageTable(image_ids, Column.of(tables["img.scp"][key] for key in images))


def read_lines(path: Path, checks: Checks) -> Iterator[Lines]:
    """Yield the keys and values of a sorted table, block by block.

    Raises:
        UnusualTable: the table is empty, not sorted, repeats a key, or holds control characters.
        ValueError: it is not UTF-8.
    """
    last, rest = b"", b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            rest += block
            end = rest.rfind(b"\n") + 1
            if end:
                lines, last = _split(rest[:end], last, checks)
                yield lines
                rest = rest[end:]
    if rest:
        lines, last = _split(rest + b"\n", last, checks)
        yield lines
    if not last:
        raise UnusualTable(f"{path} is empty")


def _split(raw: bytes, last: bytes, checks: Checks) -> tuple[Lines, bytes]:
    """Return the keys and values of whole lines, and the last key. ``last`` is the key before them."""
    data = np.frombuffer(raw, np.uint8)
    if _ODD[data].any():
        raise UnusualTable("control characters")
    ends = np.flatnonzero(data == _LINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    blanks = np.flatnonzero((data == _SPACE) | (data == _TAB))
    first = np.searchsorted(blanks, starts)
    if len(blanks) == 0 or first[-1] == len(blanks):
        raise UnusualTable("a line without a value")
    key_ends = blanks[first]
    value_starts, value_ends = key_ends + 1, ends.copy()
    if (key_ends >= ends - 1).any() or (key_ends == starts).any():
        raise UnusualTable("a line without a key or a value")
    # several blanks after the key, or blanks at the end
    for at in np.flatnonzero(np.isin(data[value_starts], (_SPACE, _TAB)) | np.isin(data[ends - 1], (_SPACE, _TAB))):
        value = raw[value_starts[at] : ends[at]]
        value_starts[at] += len(value) - len(value.lstrip(b" \t"))
        value_ends[at] -= len(value) - len(value.rstrip(b" \t"))
        if value_starts[at] >= value_ends[at]:
            raise UnusualTable("a line without a value")
    lines = Lines(Column(data, starts, key_ends), Column(data, value_starts, value_ends))
    if not raw.isascii():
        raw.decode()
        _check_characters(lines, data, checks)
    _check_order(lines.keys, last)
    return lines, lines.keys.raw(len(starts) - 1)


def _check_characters(lines: Lines, data: NDArray[np.uint8], checks: Checks) -> None:
    """Check the keys that are not ASCII, and the values that may be white space of other alphabets alone."""
    high = np.flatnonzero(data >= 0x80)
    rows = np.searchsorted(lines.keys.starts, high, "right") - 1
    in_key = np.unique(rows[high < lines.keys.ends[rows]])
    first = np.flatnonzero(data[lines.values.starts] >= 0x80)
    if any(checks.key(lines.keys[at]) for at in in_key.tolist()):
        raise UnusualTable("a key with white space")
    if any(checks.value(lines.values[at]) for at in first.tolist()):
        raise UnusualTable("a line without a value")


def _check_order(keys: Column, last: bytes) -> None:
    """Check that keys ascend in byte order and come after ``last``."""
    if keys.raw(0) <= last:
        raise UnusualTable("not sorted")
    width = keys.width()
    if width > 256:
        listed = [keys.raw(at) for at in range(len(keys))]
        ordered = all(one < two for one, two in zip(listed, listed[1:]))
    else:
        fixed = padded(keys, slice(None), width).view(f"S{width}").reshape(-1)
        ordered = bool((fixed[1:] > fixed[:-1]).all())
    if not ordered:
        raise UnusualTable("not sorted")


def _write_table(
    path: Path, folder: Path | None, name: str, checks: Checks, is_path: bool = False
) -> tuple[Column, Column]:
    """Write the keys of a table as the column NAME.ids and its values as NAME. Values that are paths must exist."""
    keys, values = ColumnWriter(folder, f"{name}.ids"), ColumnWriter(folder, name)
    for lines in read_lines(path, checks):
        if is_path:
            _check_files(lines.values)
        keys.append(*lines.keys.packed(slice(None)))
        values.append(*lines.values.packed(slice(None)))
    return keys.finish(), values.finish()


def _check_files(values: Column) -> None:
    """Check that values are paths of existing files."""
    first, last = values.data[values.starts], values.data[values.ends - 1]
    if np.isin(first, (ord("|"), ord("<"))).any() or (last == ord("|")).any():
        raise UnusualTable("a command")
    known, exists = b"", os.path.isfile
    for at in range(len(values)):
        item = values.raw(at)
        if item != known and not exists(item):
            raise UnusualTable("a missing file")
        known = item


def _blocks(path: Path, ids: Column, checks: Checks) -> Iterator[Column]:
    """Yield the values of a table with the same keys as ``wav.scp``, block by block."""
    at = 0
    for lines in read_lines(path, checks):
        part = slice(at, at + len(lines.keys))
        expected, lengths = ids.packed(part)
        found, sizes = lines.keys.packed(slice(None))
        if not np.array_equal(lengths, sizes) or not np.array_equal(expected, found):
            raise UnusualTable("other utterances than wav.scp")
        yield lines.values
        at += len(lines.keys)
    if at != len(ids):
        raise UnusualTable("fewer utterances than wav.scp")


def _write_values(path: Path, folder: Path | None, ids: Column, checks: Checks) -> Column:
    """Write the values of a table of utterances as a column of its name."""
    column = ColumnWriter(folder, path.name)
    for values in _blocks(path, ids, checks):
        column.append(*values.packed(slice(None)))
    return column.finish()


def _write_codes(path: Path, folder: Path | None, ids: Column, known: Column, checks: Checks) -> NDArray[np.int64]:
    """Write the position of each value of a table of utterances in a sorted column."""
    lookup = Lookup(known)
    codes = ArrayWriter(None if folder is None else folder / f"{path.name}.npy", np.int64)
    for values in _blocks(path, ids, checks):
        rows = lookup.rows(values)
        if (rows < 0).any():
            raise UnusualTable("a value that is missing in another table")
        codes.append(rows)
    return codes.finish()


def _distinct_values(path: Path, folder: Path | None, checks: Checks) -> Column:
    """Write the distinct values of a table, sorted, as the column NAME.ids. They are few, and have no white space."""
    found: set[str] = set()
    for lines in read_lines(path, checks):
        width = lines.values.width()
        rows = padded(lines.values, slice(None), width).view(f"S{width}").reshape(-1)
        found |= {item.decode() for item in np.unique(rows).tolist()}
    if any(checks.key(item) for item in found):
        raise UnusualTable("white space in a value")
    column = ColumnWriter(folder, f"{path.name}.ids")
    column.append_strings(sorted(found))
    return column.finish()


def _lists_utterances(speaker_ids: Column, spoken: Column, ids: Column, speakers: NDArray[np.int64]) -> bool:
    """Return whether ``spk2utt`` (speakers and their lists) is the inverse of ``utt2spk`` (a speaker per utterance)."""
    order = new_array((len(speakers),), np.int64)
    order[:] = np.argsort(speakers, kind="stable")
    counts = np.bincount(speakers, minlength=len(speaker_ids))
    if not counts.all():
        return False
    at = start = 0
    ends = np.cumsum(counts)
    while start < len(speaker_ids):
        # so many speakers at a time that their utterances are about 100,000, and one speaker at least
        stop = max(start + 1, int(np.searchsorted(ends, at + 100_000, "right")))
        rows = order[at : int(ends[stop - 1])]
        expected, lengths = Column(ids.data, ids.starts[rows], ids.ends[rows]).packed(slice(None))
        listed, sizes = spoken.packed(slice(start, stop))
        if not _same_words(expected, lengths, counts[start:stop], listed, sizes):
            words = [sorted(spoken[number].split()) for number in range(start, stop)]
            cuts = np.cumsum(counts[start:stop])
            wanted = [sorted(ids[int(row)] for row in part) for part in np.split(rows, cuts[:-1])]
            if words != wanted:
                return False
        at, start = int(ends[stop - 1]), stop
    return True


def _same_words(
    words: NDArray[np.uint8], lengths: NDArray[np.int64], counts: NDArray[np.int64], listed: NDArray[np.uint8],
    sizes: NDArray[np.int64],
) -> bool:  # fmt: skip
    """Return whether lists are words with one blank between them.

    Args:
        words: the bytes of all words.
        lengths: of each word.
        counts: number of words of each list.
        listed: the bytes of all lists.
        sizes: of each list.
    """
    firsts = np.cumsum(counts) - counts
    if not np.array_equal(np.add.reduceat(lengths, firsts) + counts - 1, sizes):
        return False
    between = np.ones(len(lengths), np.int64)
    between[firsts] = 0  # no blank before the first word of a list
    starts = np.cumsum(lengths + between) - lengths
    blanks = (starts - 1)[between == 1]
    if not (listed[blanks] == _SPACE).all():
        return False
    kept = np.ones(len(listed), bool)
    kept[blanks] = False
    return np.array_equal(listed[kept], words)
