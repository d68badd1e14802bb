"""Utterances for training and scoring: sources of speech, batches, and splits with CLIP embeddings."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from speechclip.common.constants import FRAME_RATE, SAMPLE_RATE
from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.audio import load_audio
from speechclip.data.embeddings import load_mapped
from speechclip.data.features import INDEX, FeatureStore
from speechclip.data.kaldi import DataDir
from speechclip.data.lengths import recording_lengths
from speechclip.data.mapped import Column, gathered, new_array
from speechclip.data.regions import RegionStore, load_regions


class Batch(NamedTuple):
    """A batch of utterances: stored hidden states, or waveforms.

    Attributes:
        indices: [B], positions in the data directory.
        states: [B, L, T, D], stored hidden states, padded with zeros; None for waveforms.
        frames: [B], valid frames of ``states``; None for waveforms.
        waves: B waveforms [n_i] at 16 kHz; None for stored states.
    """

    indices: Tensor
    states: Tensor | None
    frames: Tensor | None
    waves: tuple[Tensor, ...] | None


class SpeechSource(Protocol):
    """The speech of a data directory's utterances, by position.

    Attributes:
        lengths: [N], in seconds.
    """

    lengths: np.ndarray

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Read utterances. ``crop`` shortens those that are too long."""
        ...


@dataclass(frozen=True)
class Crop:
    """A random crop of long utterances. It depends on seed, epoch and utterance only.

    Attributes:
        seconds: the longest utterance after cropping; 0 for no crop.
        seed: of the run.
        epoch: from 0.
    """

    seconds: float
    seed: int
    epoch: int

    def start(self, index: int, length: int, limit: int) -> int:
        """Return the first sample or frame to keep.

        Args:
            index: position of the utterance.
            length: of the utterance, in samples or frames.
            limit: the largest number to keep; 0 for all.
        """
        if not limit or length <= limit:
            return 0
        return int(np.random.default_rng((self.seed, self.epoch, index)).integers(length - limit + 1))


class StoreSource:
    """Hidden states from a feature store.

    Args:
        directory: the store.
        ids: utterances, in the order of the data directory.
        layers: indices of the encoder's hidden states to read; None for all that are stored.

    Raises:
        MissingFileError: the store lacks an utterance or a layer.
    """

    def __init__(self, directory: str | Path, ids: Sequence[str], layers: Sequence[int] | None = None) -> None:
        self.store = FeatureStore(directory)
        self.ids = ids
        self._at = at = self.store.rows_of(ids)
        stored = list(self.store.layers)
        wanted = stored if layers is None else list(layers)
        absent = [layer for layer in wanted if layer not in stored]
        if absent:
            raise MissingFileError(Path(directory) / INDEX, f"layer {absent[0]} is not stored, only {stored}")
        rows = [stored.index(layer) for layer in wanted]
        self._span = slice(min(rows), max(rows) + 1)  # the smallest slice that holds all wanted rows
        self._rows = [row - min(rows) for row in rows]
        self.num_states = len(wanted)
        self.dim = self.store.dim
        self._frames = self.store.frames if at is None else gathered(self.store.frames, at)
        self.lengths = self.store.seconds if at is None else gathered(self.store.seconds, at)

    def read(self, index: int, crop: Crop | None = None) -> Tensor:
        """Return the hidden states of one utterance, [L, t, D]. The crop is in whole frames."""
        limit = round(crop.seconds * FRAME_RATE) if crop else 0
        length = int(self._frames[index])
        start = crop.start(index, length, limit) if crop else 0
        stop = min(length, start + limit) if limit else length
        states = self.store.read_row(index if self._at is None else int(self._at[index]), start, stop, self._span)
        return states if self._rows == list(range(len(states))) else states[self._rows]

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Read utterances, see :class:`SpeechSource`. The crop is in whole frames."""
        rows = [self.read(index, crop) for index in indices]
        frames = torch.tensor([row.shape[1] for row in rows])
        padded = rows[0].new_zeros(len(rows), rows[0].shape[0], int(frames.max()), rows[0].shape[2])
        for target, row in zip(padded, rows):
            target[:, : row.shape[1]] = row
        return Batch(torch.tensor(list(indices)), padded, frames, None)


class WaveSource:
    """Waveforms from audio files, for an encoder that runs in the training loop.

    Args:
        data: the data directory.

    Attributes:
        samples: [N], samples of each utterance at 16 kHz.

    Raises:
        UserError: an audio file is missing or cannot be read.
    """

    def __init__(self, data: DataDir) -> None:
        self._wavs = data.utterances.wavs
        self.samples, self.lengths = recording_lengths(data)

    def path(self, index: int) -> Path:
        """Return the recording of one utterance."""
        return Path(self._wavs[index])

    def read(self, index: int, crop: Crop | None = None) -> np.ndarray:
        """Return the waveform of one utterance, [n]. The crop is in samples."""
        limit = round(crop.seconds * SAMPLE_RATE) if crop else 0
        wave = load_audio(self.path(index))
        start = crop.start(index, len(wave), limit) if crop else 0
        return wave[start : start + limit] if limit else wave

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Read utterances, see :class:`SpeechSource`. The crop is in samples."""
        waves = [torch.from_numpy(self.read(index, crop)) for index in indices]
        return Batch(torch.tensor(list(indices)), None, None, tuple(waves))


class _BatchReader(torch.utils.data.Dataset[Batch]):
    """A list of batches as a dataset, so that the workers of a DataLoader can read ahead."""

    def __init__(self, source: SpeechSource, batches: Sequence[Sequence[int]], crop: Crop | None) -> None:
        self.source, self.batches, self.crop = source, batches, crop

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> Batch:
        return self.source.batch(self.batches[position], self.crop)


@contextmanager
def _blocked_termination() -> Iterator[None]:
    """Block SIGTERM in processes that start inside the ``with`` block, from their first instruction on.

    Slurm sends SIGTERM to the whole group. The main process saves and then ends its workers. A handler that a worker
    installs itself would come too late for a signal that arrives while it starts.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def read_batches(
    source: SpeechSource, batches: Sequence[Sequence[int]], *, crop: Crop | None = None, workers: int = 0
) -> Iterator[Batch]:
    """Return an iterator over batches in the given order.

    Args:
        source: the speech.
        batches: positions of the utterances of each batch.
        crop: shortens long utterances.
        workers: processes that read ahead; 0 for none.
    """
    loader = torch.utils.data.DataLoader(
        _BatchReader(source, batches, crop),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
    )
    with _blocked_termination():
        return iter(loader)


@dataclass(frozen=True)
class Split:
    """A data directory with its stored CLIP embeddings.

    Attributes:
        data: the data directory.
        image_ids: I ids, sorted.
        images: [I, J] float32, CLIP embeddings of the images.
        utterance_image: [U], position of each utterance's image in ``image_ids``.
        texts: [M, J] float32, CLIP embeddings of captions, or None.
        text_utterance: [M], position of the utterance of each caption, or None.
        regions: the regions of the images, in a split that is loaded with them.
    """

    data: DataDir
    image_ids: Column
    images: np.ndarray
    utterance_image: np.ndarray
    texts: np.ndarray | None
    text_utterance: np.ndarray | None
    regions: RegionStore | None = None

    @property
    def ids(self) -> Column:
        """Return the utterance ids, sorted."""
        return self.data.ids

    @classmethod
    def load(cls, data: str | Path, dump: str | Path, languages: Collection[str] = (), regions: str = "") -> Split:
        """Read a data directory and its embeddings. Large ones are memory-mapped.

        Args:
            data: the data directory.
            dump: folder of ``image_embeddings.npz`` and, optionally, ``text_embeddings.npz``.
            languages: keep the utterances in these languages only, with their images; empty for all.
            regions: kind of the image regions that are loaded too; empty for none.

        Raises:
            MissingFileError: the image embeddings are missing, or the embeddings are of another data directory.
            UserError: the data directory is invalid, lacks a language, or the widths of the embeddings differ.
        """
        whole = DataDir.load(data)
        directory = whole.only(languages)
        image_ids = directory.images.ids
        _, images = load_mapped(Path(dump) / "image_embeddings.npz", image_ids)
        texts, text_utterance = None, None
        if (Path(dump) / "text_embeddings.npz").is_file():
            texts, text_utterance = _caption_embeddings(whole, directory, Path(dump) / "text_embeddings.npz")
            if texts.shape[1] != images.shape[1]:
                raise UserError(
                    f"{dump}: text embeddings of {texts.shape[1]} dimensions, images of {images.shape[1]}."
                    " Extract both with one CLIP."
                )
        store = load_regions(dump, regions, image_ids) if regions else None
        return cls(directory, image_ids, images, directory.utterances.images, texts, text_utterance, store)


def _caption_embeddings(whole: DataDir, directory: DataDir, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings [M, J] of the captions of ``directory`` that a file holds, and their utterances [M].

    Raises:
        MissingFileError: an id of the file is not an utterance of ``whole``.
    """
    ids, texts = load_mapped(path)
    if whole.ids == ids:
        every = directory is whole
        owner = new_array((len(directory.ids),), np.int64)
        owner[:] = np.arange(len(owner))
        return (texts if every else gathered(texts, cast(np.ndarray, directory.rows))), owner
    known = {item: number for number, item in enumerate(whole.ids)}
    rows = np.array([known.get(item, -1) for item in ids], dtype=np.int64)
    if (rows < 0).any():
        raise MissingFileError(path, f"{ids[int(np.argmin(rows))]!r} is not an utterance of {whole.path}")
    if directory is whole:
        return texts, rows
    selected = cast(np.ndarray, directory.rows)
    kept = np.flatnonzero(np.isin(rows, selected))
    return gathered(texts, kept), np.searchsorted(selected, rows[kept])
