"""Utterances for training and scoring: sources of speech, batches, and splits with CLIP embeddings."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from speechclip.common.constants import FRAME_RATE, HOP, SAMPLE_RATE
from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.audio import load_audio, num_samples
from speechclip.data.embeddings import load_embeddings
from speechclip.data.features import INDEX, FeatureStore
from speechclip.data.kaldi import DataDir
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
        self.ids = list(ids)
        missing = [item for item in self.ids if item not in self.store.num_frames]
        if missing:
            raise MissingFileError(Path(directory) / INDEX, f"no features of utterance {missing[0]!r}")
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
        self.lengths = np.array([self.store.num_frames[item] for item in self.ids]) / FRAME_RATE

    def read(self, index: int, crop: Crop | None = None) -> Tensor:
        """Return the hidden states of one utterance, [L, t, D]. The crop is in whole frames."""
        limit = round(crop.seconds * FRAME_RATE) if crop else 0
        length = self.store.num_frames[self.ids[index]]
        start = crop.start(index, length, limit) if crop else 0
        stop = min(length, start + limit) if limit else length
        states = self.store.read(self.ids[index], start, stop, self._span)
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
        self.paths = [utterance.wav for utterance in data.utterances]
        # in whole frames, like those of a store, so that both give the same batches
        self.samples = np.array([num_samples(path) for path in self.paths])
        self.lengths = np.round(self.samples / HOP) / FRAME_RATE

    def read(self, index: int, crop: Crop | None = None) -> np.ndarray:
        """Return the waveform of one utterance, [n]. The crop is in samples."""
        limit = round(crop.seconds * SAMPLE_RATE) if crop else 0
        wave = load_audio(self.paths[index])
        start = crop.start(index, len(wave), limit) if crop else 0
        return wave[start : start + limit] if limit else wave

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Read utterances, see :class:`SpeechSource`. The crop is in samples."""
        waves = [torch.from_numpy(self.read(index, crop)) for index in indices]
        return Batch(torch.tensor(list(indices)), None, None, tuple(waves))


def bucketed_batches(
    lengths: np.ndarray, batch_size: int, *, bucket_batches: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return shuffled training batches of utterances of similar length.

    The shuffled utterances are divided into pools of ``bucket_batches`` batches. Each pool is sorted by length and
    divided into batches, and all batches are shuffled. The last utterances that do not fill a batch are not in the
    epoch. The result depends on the arguments only.

    Args:
        lengths: [N], in any unit.
        batch_size: global batch size.
        bucket_batches: batches per pool; 1 for no sorting.
        seed: of the run.
        epoch: from 0.

    Returns:
        N // batch_size lists of positions.

    Raises:
        UserError: there are fewer utterances than ``batch_size``.
    """
    if len(lengths) < batch_size:
        raise UserError(
            f"data.batch_size: {batch_size} is more than the {len(lengths)} training utterances."
            " Choose a smaller batch."
        )
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    order = order[: len(order) // batch_size * batch_size]
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * bucket_batches):
        pool = order[start : start + batch_size * bucket_batches]
        if bucket_batches > 1:
            pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size].tolist() for at in range(0, len(pool), batch_size)]
    return [batches[at] for at in rng.permutation(len(batches))]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[list[int]]:
    """Return batches that hold every utterance once, longest first, so that lack of memory shows at the start."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[at : at + batch_size].tolist() for at in range(0, len(order), batch_size)]


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
    image_ids: tuple[str, ...]
    images: np.ndarray
    utterance_image: np.ndarray
    texts: np.ndarray | None
    text_utterance: np.ndarray | None
    regions: RegionStore | None = None

    @property
    def ids(self) -> list[str]:
        """Return the utterance ids, sorted."""
        return [utterance.id for utterance in self.data.utterances]

    @classmethod
    def load(cls, data: str | Path, dump: str | Path, languages: Collection[str] = (), regions: str = "") -> Split:
        """Read a data directory and its embeddings.

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
        image_ids = tuple(directory.images)
        stored = Path(dump) / "image_embeddings.npz"
        _, images = load_embeddings(stored, image_ids)
        position = {item: at for at, item in enumerate(image_ids)}
        utterance_image = np.array([position[utterance.image_id] for utterance in directory.utterances])
        texts, text_utterance = None, None
        if (Path(dump) / "text_embeddings.npz").is_file():
            text_ids, texts = load_embeddings(Path(dump) / "text_embeddings.npz")
            at = {utterance.id: number for number, utterance in enumerate(directory.utterances)}
            known = at.keys() if directory is whole else {utterance.id for utterance in whole.utterances}
            unknown = [item for item in text_ids if item not in known]
            if unknown:
                raise MissingFileError(
                    Path(dump) / "text_embeddings.npz", f"{unknown[0]!r} is not an utterance of {data}"
                )
            kept = [number for number, item in enumerate(text_ids) if item in at]
            texts = texts if len(kept) == len(text_ids) else texts[kept]
            text_utterance = np.array([at[text_ids[number]] for number in kept], dtype=np.int64)
            if texts.shape[1] != images.shape[1]:
                raise UserError(
                    f"{dump}: text embeddings of {texts.shape[1]} dimensions, images of {images.shape[1]}."
                    " Extract both with one CLIP."
                )
        store = load_regions(dump, regions, image_ids) if regions else None
        return cls(directory, image_ids, images, utterance_image, texts, text_utterance, store)
