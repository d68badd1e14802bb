"""What stage 2 computes with the speech encoder: the hidden states of every utterance."""

from __future__ import annotations

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
from speechclip.data.audio import load_audio, num_samples
from speechclip.data.features import FeatureWriter, remove_stale
from speechclip.data.kaldi import DataDir
from speechclip.model.encoders.base import SpeechEncoder
from speechclip.model.encoders.factory import load_speech_encoder

logger = logging.getLogger(__name__)


def batches_by_seconds(samples: np.ndarray, batch_seconds: float) -> Iterator[list[int]]:
    """Positions of utterances in batches of similar length, longest first.

    A batch holds at most ``batch_seconds`` of speech, padding included, or one utterance that is longer. samples: [N].
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
    encoder: SpeechEncoder | None = None, stop: Callable[[], bool] = lambda: False,
) -> tuple[int, float, float]:  # fmt: skip
    """Store the configured hidden states of every utterance of a data directory, or of one job's share of them.

    A store that was begun with the same encoder on the same recordings is continued; another one is replaced. Batches
    are the same for every number of jobs and wherever a run was cut, and so is what is stored; on CPUs up to rounding,
    which goes by the number of threads.

    Args:
        job: from 1 to ``jobs``. With several, :func:`speechclip.data.features.write_index` follows the last.
        encoder: the configured one, where it is loaded already.
        stop: asked before each batch; once it is true, what is pending is written, the index is not.
    Returns:
        utterances encoded now, seconds taken, hours of speech.
    Raises:
        Stopped: by ``stop``.
    """
    directory = DataDir.load(data)
    paths = {utterance.id: utterance.wav for utterance in directory.utterances}
    ids = list(paths)
    samples = np.array([num_samples(path) for path in paths.values()])
    encoder = load_speech_encoder(config.model.speech_encoder) if encoder is None else encoder
    layers = config.model.speech_encoder.layers or list(range(encoder.num_states))
    if max(layers) >= encoder.num_states:
        raise UserError(
            f"model.speech_encoder.layers: {max(layers)}; {encoder.description['path']} has {encoder.num_states}"
        )
    device = pick_device()
    encoder.to(device)
    # where the encoder lies may change, what it is not
    description = {key: value for key, value in encoder.description.items() if key != "path"}
    description |= {"name": Path(encoder.description["path"]).name, "recordings": _recordings(ids, samples)}
    if reason := remove_stale(Path(out), description, layers, config.data.store_dtype):
        logger.info("%s: replacing it", reason)
    batches = [[ids[at] for at in batch] for batch in batches_by_seconds(samples, batch_seconds)][job - 1 :: jobs]
    started, done, total = time.monotonic(), 0, 0
    dtype, number = config.data.store_dtype, job if jobs > 1 else None
    with FeatureWriter(out, encoder=description, layers=layers, dtype=dtype, job=number) as writer:
        finished = writer.finished
        # of a batch that was cut all is encoded again: with other neighbours it would not be the same to the last bit
        todo = [batch for batch in batches if not finished.issuperset(batch)]
        last_said = started
        for count, batch in enumerate(todo, 1):
            if stop():
                writer.flush()
                raise Stopped(f"{out}: stopped after {count - 1} of {len(todo)} batches, which are stored")
            waves = [torch.from_numpy(load_audio(paths[name])).to(device) for name in batch]
            states, frames = encoder(waves)
            for name, row, length in zip(batch, states, frames.tolist()):
                if name not in finished:
                    writer.add(name, row[layers, :length])
            done += len(batch)
            total += sum(len(wave) for wave in waves)
            if time.monotonic() - last_said > 10:
                last_said = time.monotonic()
                left = (last_said - started) / count * (len(todo) - count)
                logger.info("%s: %d/%d batches, %.0f s left", out, count, len(todo), left)
    return done, time.monotonic() - started, total / SAMPLE_RATE / 3600


def _recordings(ids: Sequence[str], samples: np.ndarray) -> str:
    """Fingerprint of which utterances there are and how long each is: a changed corpus is another store."""
    return lines_fingerprint(f"{item} {count}" for item, count in zip(ids, samples.tolist()))
