"""The feature store: hidden states of a frozen encoder, computed once and read at random.

A store is a folder of safetensors shards with one tensor [layers, frames, width] per utterance, and an index,
``feats.scp`` (``utterance shard frames``), which is written last. The header of each shard has the layers and a
description of the encoder, with the fingerprint of its weights. A shard is either complete or missing, so an extraction
that was killed can resume.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from speechclip.common.errors import MissingFileError, UserError, writing
from speechclip.common.files import make_folder, replacing, sync
from speechclip.data.feature_index import INDEX, load_index
from speechclip.data.kaldi import write_table
from speechclip.data.mapped import Column, Lookup, StringSet, new_array
from speechclip.data.shards import DTYPES, Shard, check_same_origin, dtype_of, make_metadata, read_header

_SHARD_BYTES = 256 * 1024 * 1024
_OPEN_SHARDS = 64  # of a store, in one process


class FeatureWriter:
    """Write a store. As a context manager, it writes the index at the end if nothing failed.

    Args:
        directory: folder of the store; created if it is missing. Complete shards of an interrupted run with the same
            encoder and layers are kept: skip the utterances in :attr:`finished`.
        encoder: description of the encoder (name, fingerprint, frame rate, ...) with free keys, written to every shard.
        layers: the encoder's index of each layer in the first dimension of the features.
        dtype: ``float16`` or ``float32``, of the stored values.
        shard_bytes: a shard is written when this many bytes are pending; also the approximate memory in use.
        job: number of this writer, if several fill the store, each with its own utterances. :func:`write_index` then
            writes the index. None for a single writer.
        replace: accept shards of another encoder, other layers or another dtype. They and the index stay until the
            first new shard is complete.

    Attributes:
        stale: the reason why the shards in the folder are replaced; empty if they are not.

    Raises:
        UserError: the folder holds shards of another encoder, other layers or another dtype, and ``replace`` is False.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        encoder: Mapping[str, str],
        layers: Sequence[int],
        dtype: str = "float16",
        shard_bytes: int = _SHARD_BYTES,
        job: int | None = None,
        replace: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"feature dtype {dtype!r} is not known (known: {', '.join(DTYPES)}). Choose a known one.")
        if not layers:
            raise UserError("no layers to store. Name at least one layer.")
        self.directory = Path(directory)
        self._metadata = make_metadata(encoder, layers)
        self._layers = len(layers)
        self._dtype = DTYPES[dtype]
        self._shard_bytes = shard_bytes
        self._job = job
        self._prefix = "feats." if job is None else f"feats.{job:03d}."
        self._index: dict[str, str] | None = {} if job is None else None  # the lines of feats.scp
        self._finished = StringSet()
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._dim: int | None = None
        self._next_shard = 0
        self._replace = replace
        self.stale = ""
        make_folder(self.directory)
        self._resume()

    @property
    def finished(self) -> StringSet:
        """Return the utterances whose features are on disk."""
        return self._finished

    def add(self, utt_id: str, array: npt.NDArray[Any] | torch.Tensor) -> None:
        """Add the features of one utterance.

        Args:
            utt_id: the utterance.
            array: [layers, frames, width].

        Raises:
            UserError: another shape, an utterance that was added before, or values that the stored dtype cannot hold.
        """
        tensor = torch.as_tensor(np.asarray(array) if not isinstance(array, torch.Tensor) else array).detach()
        where = f"{self.directory}: utterance {utt_id!r}"
        if utt_id in self._finished or utt_id in self._pending:
            raise UserError(f"{where}: features were added before. Add each utterance once.")
        if tensor.ndim != 3 or tensor.shape[0] != self._layers or not tensor.shape[1]:
            raise UserError(
                f"{where}: features of shape {tuple(tensor.shape)}, not [{self._layers}, frames, width]."
                " Add all layers of the store."
            )
        if self._dim is None:
            self._dim = tensor.shape[2]
        if tensor.shape[2] != self._dim:
            raise UserError(
                f"{where}: features of width {tensor.shape[2]} in a store of width {self._dim}."
                " Extract all features with one encoder."
            )
        tensor = tensor.to(device="cpu", dtype=self._dtype, copy=True).contiguous()
        if not all(bound.isfinite() for bound in tensor.aminmax()):  # NaN propagates; much faster than isfinite().all()
            raise UserError(
                f"{where}: features are NaN or beyond the range of {str(self._dtype).removeprefix('torch.')}."
                " Use dtype float32."
            )
        self._pending[utt_id] = tensor
        self._pending_bytes += tensor.nbytes
        if self._pending_bytes >= self._shard_bytes:
            self._write_shard()

    def flush(self) -> None:
        """Write the pending features to a shard, so that a run that ends here loses nothing.

        Raises:
            UserError: the disk is full.
        """
        self._write_shard()

    def close(self) -> None:
        """Write the pending features and, if this is the only writer, the index.

        Raises:
            UserError: the disk is full, or no features were added.
        """
        self._write_shard()
        if self._index is None:
            return
        if not self._index:
            raise UserError(f"{self.directory}: no features to store. Check the data directory.")
        write_table(self.directory / INDEX, self._index)

    def __enter__(self) -> FeatureWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the writer. After an error only the complete shards remain."""
        if kind is None:
            self.close()

    def _resume(self) -> None:
        """Index the complete shards and remove the incomplete files of a killed run."""
        for leftover in self.directory.glob(f".{self._prefix}*.part"):
            leftover.unlink(missing_ok=True)
        for path in _shards(self.directory):
            try:
                shard = read_header(path)
            except UserError:
                path.unlink(missing_ok=True)  # damaged: its utterances are encoded again
                continue
            if path.name.startswith(self._prefix):  # a new shard never has the name of one that it replaces
                self._next_shard = max(self._next_shard, int(path.name.split(".")[-2]) + 1)
            if reason := self._difference(path, shard):
                if not self._replace:
                    raise UserError(f"{reason}. Remove the folder.")
                self.stale = self.stale or reason
                continue
            self._dim = next(iter(shard.shapes.values()))[2]
            self._note(path, {utt_id: shape[1] for utt_id, shape in shard.shapes.items()})

    def _difference(self, path: Path, shard: Shard) -> str:
        """Return how a shard differs from the shards of this writer; empty if it does not."""
        try:
            check_same_origin(path, shard, self._metadata, self._dtype)
        except UserError as error:
            return str(error).removesuffix(". Remove the folder.")
        return ""

    def _remove_stale(self) -> None:
        """Remove the index and the shards that are replaced. Other writers may do the same."""
        (self.directory / INDEX).unlink(missing_ok=True)
        for path in _shards(self.directory):
            with contextlib.suppress(MissingFileError):  # another writer was faster
                if self._difference(path, read_header(path)):
                    path.unlink(missing_ok=True)
        self.stale = ""

    def _write_shard(self) -> None:
        """Write the pending utterances to a temporary file and rename it."""
        if not self._pending:
            return
        path = self.directory / f"{self._prefix}{self._next_shard:04d}.safetensors"
        part = self.directory / f".{path.name}.part"
        with writing(path), ExitStack() as cleanup:
            cleanup.callback(part.unlink, missing_ok=True)
            save_file(self._pending, part, metadata=self._metadata)
            sync(part)
            if self.stale:
                self._remove_stale()
            os.replace(part, path)
            sync(self.directory)
        self._note(path, {utt_id: tensor.shape[1] for utt_id, tensor in self._pending.items()})
        self._next_shard += 1
        self._pending, self._pending_bytes = {}, 0

    def _note(self, path: Path, frames: Mapping[str, int]) -> None:
        """Note the utterances of a complete shard, with their frames."""
        self._finished.update(frames)
        if self._index is not None:
            self._index |= {utt_id: f"{path.name} {count}" for utt_id, count in frames.items()}


def feature_folder(dump: str | os.PathLike[str], part: str) -> Path:
    """Return the folder of the stored features of a part of the speech encoder (``model.speech_encoder.part``)."""
    return Path(dump) if part == "all" else Path(dump) / part


def write_index(directory: Path, ids: Sequence[str]) -> None:
    """Write the index of a store that several writers have filled.

    Args:
        directory: folder of the store.
        ids: the utterances.

    Raises:
        MissingFileError: no shard has an utterance.
        UserError: a shard is damaged or differs from the others in encoder, layers or dtype.
    """
    column = ids if isinstance(ids, Column) else Column.of(sorted(ids))
    lookup, names = Lookup(column), _shards(directory)
    shards, frames = new_array((len(column),), np.int32), new_array((len(column),), np.int32)
    shards[:] = -1
    first = None
    for number, path in enumerate(names):
        shard = read_header(path)
        first = first or shard
        check_same_origin(path, shard, first.metadata, dtype_of(path, first))
        rows = lookup.rows(Column.of(shard.shapes))
        counts = np.array([shape[1] for shape in shard.shapes.values()], np.int32)
        shards[rows[rows >= 0]], frames[rows[rows >= 0]] = number, counts[rows >= 0]
    missing = np.flatnonzero(shards < 0)
    if len(missing):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingFileError(directory / INDEX, f"no features of utterance {column[int(missing[0])]!r}{more}")
    for leftover in directory.glob(".feats.*.part"):
        leftover.unlink(missing_ok=True)
    with replacing(directory / INDEX) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for item, number, count in zip(column, shards, frames):
            file.write(f"{item} {names[number].name} {count}\n")


def _shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("feats.*.safetensors"))


class FeatureStore:
    """Read a store. Each process maps a shard into memory when it reads from it.

    Args:
        directory: folder of the store.

    Attributes:
        ids: the utterances, sorted.
        frames: [N], number of frames of each utterance.
        seconds: [N], length of each utterance in seconds.
        layers: the encoder's index of each stored layer.
        dim: width of the features.
        dtype: of the stored values.
        encoder: description of the encoder.

    Raises:
        MissingFileError: the index or a shard is missing.
        UserError: a shard is truncated, differs from the others in encoder, layers or dtype, or lacks an utterance of
            the index.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        index = load_index(self.directory / INDEX)
        self.ids, self.frames, self.seconds = index.ids, index.frames, index.seconds
        self._shards, self._shard_of, self._offsets = index.names, index.shards, index.offsets
        self.dtype, self.encoder, self.layers, self.dim = index.dtype, index.encoder, index.layers, index.dim
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    @property
    def num_frames(self) -> Mapping[str, int]:
        """Return the number of frames of each utterance."""
        return _FramesOf(self)

    def rows_of(self, ids: Sequence[str]) -> np.ndarray | None:
        """Return the position of each utterance in the index, [N]. None if they are all utterances in order.

        Raises:
            MissingFileError: the store lacks an utterance.
        """
        if self.ids.same(ids) if isinstance(ids, Column) else self.ids == ids:
            return None
        rows = np.fromiter((self.ids.find(item) for item in ids), np.int64, len(ids))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise MissingFileError(self.directory / INDEX, f"no features of utterance {ids[int(missing[0])]!r}")
        return rows

    def read(self, utt_id: str, start: int = 0, stop: int | None = None, rows: slice = slice(None)) -> torch.Tensor:
        """Read the features of one utterance. Only the requested part is read from disk.

        Args:
            utt_id: the utterance.
            start: first frame.
            stop: one more than the last frame; None for all frames.
            rows: positions among the stored layers.

        Returns:
            A new tensor [layers, frames, width] in the stored dtype.

        Raises:
            UserError: the store does not have the utterance.
        """
        at = self.ids.find(utt_id)
        if at < 0:
            raise UserError(
                f"{self.directory / INDEX}: no features of utterance {utt_id!r}. Extract the features again."
            )
        return self.read_row(at, start, stop, rows)

    def read_row(self, at: int, start: int = 0, stop: int | None = None, rows: slice = slice(None)) -> torch.Tensor:
        """Read the features of the utterance at a position of :attr:`ids`, as :meth:`read` does."""
        frames = int(self.frames[at])
        start, stop, _ = slice(start, stop).indices(frames)
        first, last, _ = rows.indices(len(self.layers))
        features = torch.empty(last - first, max(0, stop - start), self.dim, dtype=self.dtype)
        size, offset = self.dim * features.element_size(), int(self._offsets[at])  # bytes of a frame
        target = features.view(torch.uint8).numpy().reshape(last - first, -1)
        if features.shape[1] == frames:  # whole layers are adjacent
            self._read_bytes(at, target, offset + first * frames * size)
        else:
            for layer, part in zip(range(first, last), target):
                self._read_bytes(at, part, offset + (layer * frames + start) * size)
        return features

    def _read_bytes(self, at: int, target: np.ndarray, offset: int) -> None:
        """Fill an array with bytes of an utterance's shard, from an offset on."""
        number = int(self._shard_of[at])
        path = self.directory / self._shards[number]
        try:
            if number not in self._open:
                self._open[number] = path.open("rb", buffering=0)
                if len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(number)
            count, buffer = 0, target.reshape(-1).data
            while count < len(buffer):  # a call reads at most 2 GiB
                done = os.preadv(self._open[number].fileno(), [buffer[count:]], offset + count)
                if not done:
                    raise OSError("the file ends")
                count += done
        except OSError as error:
            raise UserError(f"{path}: truncated or corrupt features ({error}). Extract the features again.") from error

    def __contains__(self, utt_id: object) -> bool:
        """Return whether the store has an utterance."""
        return isinstance(utt_id, str) and self.ids.find(utt_id) >= 0

    def __len__(self) -> int:
        """Return the number of utterances."""
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open shards, for worker processes that are spawned."""
        return {**self.__dict__, "_open": OrderedDict()}


class _FramesOf(Mapping[str, int]):
    """The number of frames of each utterance of a store."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def __getitem__(self, utt_id: str) -> int:
        at = self._store.ids.find(utt_id)
        if at < 0:
            raise KeyError(utt_id)
        return int(self._store.frames[at])

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.ids)

    def __len__(self) -> int:
        return len(self._store.ids)
