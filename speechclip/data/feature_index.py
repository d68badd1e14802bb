"""The index of a feature store: shard and number of frames of each utterance, in memory or mapped."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speechclip.common.constants import FRAME_RATE
from speechclip.common.errors import UserError
from speechclip.data.kaldi import CHECKS, parse_count, read_table
from speechclip.data.kaldi_columns import UnusualTable, read_lines
from speechclip.data.mapped import (
    ArrayWriter,
    Column,
    ColumnWriter,
    Lookup,
    files_stamp,
    is_large,
    mapped_folder,
    open_array,
    open_column,
)
from speechclip.data.shards import DTYPES, Shard, check_same_origin, dtype_of, encoder_of, read_header

logger = logging.getLogger(__name__)

INDEX = "feats.scp"
VERSION = "feature index 2"
_FACTS = "store.json"


@dataclass(frozen=True)
class FeatureIndex:
    """The content of a feature store.

    Attributes:
        ids: N utterances, sorted.
        frames: [N], number of frames of each.
        seconds: [N], length of each in seconds.
        names: file names of the shards.
        shards: [N], position of each utterance's shard in ``names``.
        offsets: [N], first byte of each utterance's features in its shard.
        layers, dim, dtype, encoder: see :class:`speechclip.data.features.FeatureStore`.
    """

    ids: Column
    frames: np.ndarray
    seconds: np.ndarray
    names: Sequence[str]
    shards: np.ndarray
    offsets: np.ndarray
    layers: tuple[int, ...]
    dim: int
    dtype: torch.dtype
    encoder: dict[str, str]


def load_index(path: Path) -> FeatureIndex:
    """Read an index and compare it with the headers of all shards.

    The index of a large store is mapped: the first call compares and writes it to a hidden folder of the store. Later
    calls use it until the index or the size or time of a shard changes.

    Args:
        path: ``feats.scp`` of the store.

    Raises:
        MissingFileError: the index or a shard is missing.
        UserError: a line of the index is malformed, or a shard does not fit.
    """
    if not path.is_file() or not is_large(path.stat().st_size):
        return _read_index(path)

    def stamp() -> str:
        shards = sorted(entry.path for entry in os.scandir(path.parent) if entry.name.endswith(".safetensors"))
        return files_stamp([path, *map(Path, shards)], VERSION)

    def build(folder: Path) -> None:
        logger.info("%s: building its memory-mapped index", path)
        _write_index(path, folder)

    try:
        return mapped_folder(path.parent / ".index", stamp, build, _open_index)
    except (UnusualTable, ValueError):  # not valid: the reader in memory names the problem
        return _read_index(path)


def _read_index(path: Path) -> FeatureIndex:
    """Read an index into memory."""
    table = read_table(path)
    shard_of, counts = [], []
    for utt_id, value in table.items():
        shard, count = _parse(path, utt_id, value)
        shard_of.append(shard)
        counts.append(count)
    names = sorted(set(shard_of))
    at = {name: number for number, name in enumerate(names)}
    frames = np.array(counts, dtype=np.int64)
    facts = None
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, header in _headers(path, names):
        facts = facts or _facts(path.parent / name, header)
        own = (key for key in header.shapes if table.get(key, "").startswith(f"{name} "))
        found |= {key: (header.shapes[key], header.offsets[key]) for key in own}
    assert facts is not None
    layers, dim, dtype, encoder = facts
    for utt_id, name, count in zip(table, shard_of, counts):
        shape = found[utt_id][0] if utt_id in found else None
        _check_shape(path.parent / name, utt_id, shape, (len(layers), count, dim))
    offsets = np.array([found[utt_id][1] for utt_id in table], dtype=np.int64)
    shards = np.array([at[name] for name in shard_of], dtype=np.int32)
    return FeatureIndex(
        Column.of(table), frames, frames / FRAME_RATE, names, shards, offsets, layers, dim, dtype, encoder
    )


def _write_index(path: Path, folder: Path) -> None:
    """Write the mapped index. ValueError or UnusualTable if the index is not valid."""
    ids = ColumnWriter(folder, "ids")
    writers = {name: ArrayWriter(folder / f"{name}.npy", kind) for name, kind in
               (("frames", np.int64), ("seconds", np.float64), ("shards", np.int32))}  # fmt: skip
    numbers: dict[str, int] = {}
    for lines in read_lines(path, CHECKS):
        ids.append(*lines.keys.packed(slice(None)))
        try:
            parsed = [_parse(path, "", value) for value in lines.values]
        except UserError as error:
            raise UnusualTable(str(error)) from error
        frames = np.array([count for _, count in parsed], np.int64)
        writers["frames"].append(frames)
        writers["seconds"].append(frames / FRAME_RATE)
        writers["shards"].append(np.array([numbers.setdefault(name, len(numbers)) for name, _ in parsed], np.int32))
    column, arrays = ids.finish(), {name: writer.finish() for name, writer in writers.items()}
    offsets = np.lib.format.open_memmap(folder / "offsets.npy", "w+", np.int64, (len(column),))
    layers, dim, dtype, encoder = _check_headers(path, list(numbers), column, arrays, offsets)
    offsets.flush()
    names = {value: key for key, value in DTYPES.items()}
    column_of_names = ColumnWriter(folder, "names")
    column_of_names.append_strings(numbers)
    column_of_names.finish()
    facts = {"layers": layers, "dim": dim, "dtype": names[dtype], "encoder": encoder}
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _check_headers(
    path: Path, names: list[str], ids: Column, arrays: dict[str, np.ndarray], offsets: np.ndarray
) -> tuple[tuple[int, ...], int, torch.dtype, dict[str, str]]:
    """Compare a mapped index with the headers of its shards, one at a time, and fill in the offsets."""
    lookup, seen, facts = Lookup(ids), np.zeros(len(ids), bool), None
    for number, (name, shard) in enumerate(_headers(path, names)):
        facts = facts or _facts(path.parent / name, shard)
        rows = lookup.rows(Column.of(shard.shapes))
        shapes = np.array(list(shard.shapes.values()), np.int64)
        own = rows >= 0
        own[own] = arrays["shards"][rows[own]] == number
        wanted = (len(facts[0]), arrays["frames"][rows[own]], facts[1])
        if not all((shapes[own, axis] == size).all() for axis, size in enumerate(wanted)):
            raise UnusualTable("another shape")
        seen[rows[own]] = True
        offsets[rows[own]] = np.array(list(shard.offsets.values()), np.int64)[own]
    if facts is None or not seen.all():
        raise UnusualTable("a missing utterance")
    return facts


def _open_index(folder: Path) -> FeatureIndex:
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    frames, seconds, shards, offsets = (
        open_array(folder / f"{name}.npy") for name in ("frames", "seconds", "shards", "offsets")
    )
    layers, dtype = tuple(facts["layers"]), DTYPES[facts["dtype"]]
    ids, names = open_column(folder, "ids"), open_column(folder, "names")
    return FeatureIndex(ids, frames, seconds, names, shards, offsets, layers, facts["dim"], dtype, facts["encoder"])


def _parse(path: Path, utt_id: str, value: str) -> tuple[str, int]:
    """Return the shard and the number of frames of a line."""
    shard, _, frames = value.rpartition(" ")
    count = parse_count(frames)
    if not shard or shard != os.path.basename(shard) or count is None:
        raise UserError(f"{path}: {utt_id!r}: not a shard and a number of frames: {value}. Extract the features again.")
    return shard, count


def _headers(path: Path, names: list[str]) -> Iterator[tuple[str, Shard]]:
    """Yield the headers of the shards, after a comparison with the first one."""
    first = None
    for name in names:
        shard = read_header(path.parent / name)
        first = first or shard
        check_same_origin(path.parent / name, shard, first.metadata, dtype_of(path.parent / names[0], first))
        yield name, shard


def _facts(path: Path, shard: Shard) -> tuple[tuple[int, ...], int, torch.dtype, dict[str, str]]:
    """Return layers, width, dtype and encoder of a store from its first shard."""
    dim = next(iter(shard.shapes.values()))[2]
    layers: tuple[int, ...] = tuple(json.loads(shard.metadata["layers"]))
    return layers, dim, dtype_of(path, shard), encoder_of(shard.metadata)


def _check_shape(path: Path, utt_id: str, shape: tuple[int, ...] | None, expected: tuple[int, ...]) -> None:
    """Compare the shape of stored features with the index. UserError if they differ."""
    if shape != expected:
        found = "is missing" if shape is None else f"has shape {list(shape)}, not {list(expected)}"
        raise UserError(f"{path}: utterance {utt_id!r} {found} (see {INDEX}). Extract the features again.")
