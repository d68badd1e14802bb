"""The extraction of hidden states from all utterances of a data directory."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.devices import pick_device
from speechclip.common.errors import Stopped, UserError
from speechclip.common.files import lines_fingerprint
from speechclip.config import Config
from speechclip.data.audio import load_audio
from speechclip.data.augmented import Augmentation
from speechclip.data.features import FeatureWriter
from speechclip.data.kaldi import DataDir
from speechclip.data.lengths import recording_lengths
from speechclip.model.encoders.base import SpeechEncoder
from speechclip.model.encoders.factory import load_speech_encoder

logger = logging.getLogger(__name__)


def batches_by_seconds(samples: np.ndarray, batch_seconds: float) -> Iterator[list[int]]:
    """Yield batches of positions of utterances of similar length, longest first.

    Args:
        samples: [N], length of each utterance.
        batch_seconds: the longest batch, with padding. An utterance that is longer is a batch of its own.
    """
    batch: list[int] = []
    longest = 0
    for position in np.argsort(-samples, kind="stable").tolist():
        if batch and longest * (len(batch) + 1) > batch_seconds * SAMPLE_RATE:
            yield batch
            batch = []
        longest = samples[batch[0]] if batch else samples[position]
        batch.append(position)
    if batch:
        yield batch


def extract_features(
    config: Config, data: str, out: str, *, batch_seconds: float, job: int = 1, jobs: int = 1,
    encoder: SpeechEncoder | None = None, stop: Callable[[], bool] = lambda: False, copy: int = 0,
) -> tuple[int, float, float]:  # fmt: skip
    """Store the configured hidden states of the utterances of a data directory, or the part of one job.

    An incomplete store of the same encoder and recordings is completed; another store is replaced. The batches, and
    therefore the stored values, do not depend on the number of jobs or on interruptions. On CPUs they depend on the
    number of threads, up to rounding.

    Args:
        config: the configuration.
        data: the data directory.
        out: folder of the store.
        batch_seconds: the longest batch, with padding.
        job: number of this job, from 1 to ``jobs``.
        jobs: number of jobs. If there are several, call :func:`speechclip.data.features.write_index` after the last.
        encoder: the configured encoder, if it is loaded.
        copy: 0 for the recordings themselves, or the number of a copy with the noise and rooms of ``data.augment``.
        stop: called before each batch. If it returns True, the pending features are written, and the index is not.

    Returns:
        The number of utterances that were encoded now, the seconds that it took, and the hours of speech.

    Raises:
        UserError: the data directory is invalid, or the encoder lacks a configured layer.
        Stopped: ``stop`` returned True.
    """
    directory = DataDir.load(data)
    ids, wavs = directory.ids, directory.utterances.wavs
    samples, _ = recording_lengths(directory)
    encoder = load_speech_encoder(config.model.speech_encoder) if encoder is None else encoder
    layers = config.model.speech_encoder.layers or list(range(encoder.num_states))
    if max(layers) >= encoder.num_states:
        raise UserError(
            f"model.speech_encoder.layers: {max(layers)}; {encoder.description['path']} has states 0 to "
            f"{encoder.num_states - 1}."
            " Choose from these."
        )
    device = pick_device()
    encoder.to(device)
    # the encoder may move to another folder: only its name counts
    description = {key: value for key, value in encoder.description.items() if key != "path"}
    description |= {"name": Path(encoder.description["path"]).name, "recordings": _recordings(ids, samples)}
    augmentation = None
    if copy:
        augmentation = Augmentation(directory, config.data.augment)
        drawn = dataclasses.replace(config.data.augment, probability=1.0, copies=1)  # the others change no copy
        description |= {"augment": f"copy {copy} {lines_fingerprint([str(drawn)])}"}
    batches = itertools.islice(batches_by_seconds(samples, batch_seconds), job - 1, None, jobs)
    started, done, total = time.monotonic(), 0, 0
    dtype, number = config.data.store_dtype, job if jobs > 1 else None
    with FeatureWriter(out, encoder=description, layers=layers, dtype=dtype, job=number, replace=True) as writer:
        if writer.stale:
            logger.info("%s. The old features stay until the first new shard is complete.", writer.stale)
        finished = writer.finished
        # the whole of an interrupted batch is encoded again: other padding would change the last bits
        todo = [np.array(batch) for batch in batches if not all(ids[at] in finished for at in batch)]
        last_logged = started
        for count, positions in enumerate(todo, 1):
            batch = positions.tolist()
            if stop():
                writer.flush()
                raise Stopped(f"{out}: stopped after {count - 1} of {len(todo)} batches, which are stored")
            heard = [load_audio(Path(wavs[at])) for at in batch]
            if augmentation is not None:
                heard = [augmentation.change(at, wave, f"copy {copy}") for at, wave in zip(batch, heard)]
            waves = [torch.from_numpy(wave).to(device) for wave in heard]
            states, frames = encoder(waves)
            for at, row, length in zip(batch, states, frames.tolist()):
                if (name := ids[at]) not in finished:
                    writer.add(name, row[layers, :length])
            done += len(batch)
            total += sum(len(wave) for wave in waves)
            if time.monotonic() - last_logged > 10:
                last_logged = time.monotonic()
                left = (last_logged - started) / count * (len(todo) - count)
                logger.info("%s: %d/%d batches, %.0f s left", out, count, len(todo), left)
    return done, time.monotonic() - started, total / SAMPLE_RATE / 3600


def _recordings(ids: Sequence[str], samples: np.ndarray) -> str:
    """Return a fingerprint of the ids and lengths of all utterances. A changed corpus needs another store."""
    return lines_fingerprint(f"{item} {count}" for item, count in zip(ids, samples.tolist()))
