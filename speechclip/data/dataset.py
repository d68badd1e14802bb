"""Utterances for training and scoring: where their speech comes from, and how they are batched."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from speechclip.common.constants import FRAME_RATE, HOP, SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.data.audio import load_audio, num_samples
from speechclip.data.embeddings import load_embeddings
from speechclip.data.features import FeatureStore
from speechclip.data.kaldi import DataDir


class Batch(NamedTuple):
    """A batch of utterances.

    indices: [B] positions in the data directory. Either ``states`` [B, L, T, D] with ``frames`` [B] (from the store),
    or ``waves``, B tensors [n_i] at 16 kHz (online).
    """

    indices: Tensor
    states: Tensor | None
    frames: Tensor | None
    waves: tuple[Tensor, ...] | None


class SpeechSource(Protocol):
    """Speech of a data directory's utterances, by position. ``lengths``: [N] seconds."""

    lengths: np.ndarray

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Read utterances; ``crop`` shortens those that are too long."""
        ...


@dataclass(frozen=True)
class Crop:
    """A random crop of overlong utterances that depends on nothing but seed, epoch and utterance.

    seconds: utterances longer than this are cropped to it; 0 for never.
    """

    seconds: float
    seed: int
    epoch: int

    def start(self, index: int, length: int, limit: int) -> int:
        """First sample or frame to keep of utterance ``index``, ``length`` long, at most ``limit`` kept."""
        if not limit or length <= limit:
            return 0
        return int(np.random.default_rng((self.seed, self.epoch, index)).integers(length - limit + 1))


class StoreSource:
    """Hidden states from the feature store of stage 2.

    Args:
        directory: the store. ids: utterances, in the data directory's order.
        layers: indices of the encoder's hidden states to read; None for all that are stored.
    Raises:
        UserError: an utterance or a layer that is not stored.
    """

    def __init__(self, directory: str | Path, ids: Sequence[str], layers: Sequence[int] | None = None) -> None:
        self.store = FeatureStore(directory)
        self.ids = list(ids)
        missing = [item for item in self.ids if item not in self.store.num_frames]
        if missing:
            raise UserError(f"{directory}/feats.scp: no features for {missing[0]}; stage 2 makes them")
        stored = list(self.store.layers)
        wanted = stored if layers is None else list(layers)
        absent = [layer for layer in wanted if layer not in stored]
        if absent:
            raise UserError(f"{directory}: layer {absent[0]} is not stored, only {stored}; run stage 2 again")
        rows = [stored.index(layer) for layer in wanted]
        self._span = slice(min(rows), max(rows) + 1)  # read from disk; of these, the ones wanted
        self._rows = [row - min(rows) for row in rows]
        self.num_states = len(wanted)
        self.dim = self.store.dim
        self.lengths = np.array([self.store.num_frames[item] for item in self.ids]) / FRAME_RATE

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """See :class:`SpeechSource`. Crops whole frames."""
        limit = round(crop.seconds * FRAME_RATE) if crop else 0
        rows = []
        for index in indices:
            length = self.store.num_frames[self.ids[index]]
            start = crop.start(index, length, limit) if crop else 0
            stop = min(length, start + limit) if limit else length
            states = self.store.read(self.ids[index], start, stop, self._span)  # [L, t, D]
            rows.append(states if self._rows == list(range(len(states))) else states[self._rows])
        frames = torch.tensor([row.shape[1] for row in rows])
        padded = rows[0].new_zeros(len(rows), rows[0].shape[0], int(frames.max()), rows[0].shape[2])
        for target, row in zip(padded, rows):
            target[:, : row.shape[1]] = row
        return Batch(torch.tensor(list(indices)), padded, frames, None)


class WaveSource:
    """Waveforms, for an encoder in the training loop.

    Args:
        data: the data directory.
    """

    def __init__(self, data: DataDir) -> None:
        self.paths = [utterance.wav for utterance in data.utterances]
        # in whole frames, as a store has them, so that both are batched alike
        self.lengths = np.round(np.array([num_samples(path) for path in self.paths]) / HOP) / FRAME_RATE

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """See :class:`SpeechSource`. Crops samples."""
        limit = round(crop.seconds * SAMPLE_RATE) if crop else 0
        waves = []
        for index in indices:
            wave = load_audio(self.paths[index])
            start = crop.start(index, len(wave), limit) if crop else 0
            waves.append(torch.from_numpy(wave[start : start + limit] if limit else wave))
        return Batch(torch.tensor(list(indices)), None, None, tuple(waves))


def bucketed_batches(
    lengths: np.ndarray, batch_size: int, *, bucket_batches: int, seed: int, epoch: int
) -> list[list[int]]:
    """Shuffled training batches of utterances of similar length.

    The epoch's shuffle is cut into pools of ``bucket_batches`` batches; each pool is sorted by length and cut into
    batches, which are shuffled again. Utterances that fill no batch are left out of the epoch. The result depends on
    the arguments alone.

    Args:
        lengths: [N], any unit. batch_size: global. bucket_batches: 1 for no sorting.
    Returns:
        N // batch_size batches of positions.
    Raises:
        UserError: fewer utterances than a batch.
    """
    if len(lengths) < batch_size:
        raise UserError(f"data.batch_size: {batch_size} is more than the {len(lengths)} training utterances")
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
    """Every utterance once, sorted by length, longest first (a batch that does not fit fails at the start)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[at : at + batch_size].tolist() for at in range(0, len(order), batch_size)]


class _BatchReader(torch.utils.data.Dataset[Batch]):
    """A list of batches as a dataset, so that DataLoader's workers can read ahead."""

    def __init__(self, source: SpeechSource, batches: Sequence[Sequence[int]], crop: Crop | None) -> None:
        self.source, self.batches, self.crop = source, batches, crop

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> Batch:
        return self.source.batch(self.batches[position], self.crop)


def _ignore_termination(worker: int) -> None:
    """SIGTERM reaches the whole group; the process that reads here saves first and then ends its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def read_batches(
    source: SpeechSource, batches: Sequence[Sequence[int]], *, crop: Crop | None = None, workers: int = 0
) -> Iterator[Batch]:
    """Read batches in order, ``workers`` processes ahead."""
    loader = torch.utils.data.DataLoader(
        _BatchReader(source, batches, crop),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_ignore_termination,
        prefetch_factor=2 if workers else None,
    )
    return iter(loader)


@dataclass(frozen=True)
class Split:
    """A data directory with the CLIP embeddings that stage 2 stored for it.

    image_ids: sorted. images: [I, J] float32. utterance_image: [U] position of each utterance's image.
    texts: [M, J] float32, CLIP's embeddings of the captions of utterances ``text_utterance`` [M]; or None.
    """

    data: DataDir
    image_ids: tuple[str, ...]
    images: np.ndarray
    utterance_image: np.ndarray
    texts: np.ndarray | None
    text_utterance: np.ndarray | None

    @property
    def ids(self) -> list[str]:
        """Utterance ids, sorted."""
        return [utterance.id for utterance in self.data.utterances]

    @classmethod
    def load(cls, data: str | Path, dump: str | Path) -> Split:
        """Read ``data`` (a data directory) and ``dump``/{image,text}_embeddings.npz.

        Raises:
            UserError: an invalid data directory, missing embeddings, or embeddings of two widths.
        """
        directory = DataDir.load(data)
        image_ids = tuple(directory.images)
        stored = Path(dump) / "image_embeddings.npz"
        if not stored.is_file():
            raise UserError(f"{stored}: no such file; stage 2 makes it")
        _, images = load_embeddings(stored, image_ids)
        position = {item: at for at, item in enumerate(image_ids)}
        utterance_image = np.array([position[utterance.image_id] for utterance in directory.utterances])
        texts, text_utterance = None, None
        if (Path(dump) / "text_embeddings.npz").is_file():
            text_ids, texts = load_embeddings(Path(dump) / "text_embeddings.npz")
            at = {utterance.id: number for number, utterance in enumerate(directory.utterances)}
            unknown = [item for item in text_ids if item not in at]
            if unknown:
                raise UserError(
                    f"{dump}/text_embeddings.npz: {unknown[0]} is no utterance of {data}; run stage 2 again"
                )
            text_utterance = np.array([at[item] for item in text_ids])
            if texts.shape[1] != images.shape[1]:
                raise UserError(f"{dump}: text embeddings of {texts.shape[1]} dimensions, images of {images.shape[1]}")
        return cls(directory, image_ids, images, utterance_image, texts, text_utterance)
