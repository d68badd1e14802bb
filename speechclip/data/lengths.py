"""The lengths of the recordings of a data directory."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from speechclip.common.constants import FRAME_RATE, HOP
from speechclip.data.audio import num_samples
from speechclip.data.kaldi import DataDir
from speechclip.data.mapped import ArrayWriter, files_stamp, gathered, is_large, mapped_folder, open_array

logger = logging.getLogger(__name__)

VERSION = "lengths 1"
_BLOCK = 1 << 14  # recordings


def recording_lengths(data: DataDir) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples of each recording at 16 kHz, [N], and its seconds in whole frames, [N].

    Stored features have the same whole frames, so both give the same batches. The lengths of a large directory are read
    once, and stored in a hidden folder of the directory until ``wav.scp`` changes.

    Raises:
        UserError: an audio file is missing or cannot be read.
    """
    path = data.path / "wav.scp"
    if not path.is_file() or not is_large(path.stat().st_size):
        samples = np.array([num_samples(Path(wav)) for wav in data.utterances.wavs])
        return samples, _seconds(samples)
    whole = data if data.rows is None else DataDir.load(data.path)

    def build(folder: Path) -> None:
        logger.info("%s: reading the lengths of %d recordings once", path, len(whole.ids))
        writers = ArrayWriter(folder / "samples.npy", np.int64), ArrayWriter(folder / "seconds.npy", np.float64)
        for start in range(0, len(whole.ids), _BLOCK):
            found = np.array([num_samples(Path(wav)) for wav in whole.utterances.wavs[start : start + _BLOCK]])
            writers[0].append(found)
            writers[1].append(_seconds(found))
        for writer in writers:
            writer.finish()

    def use(folder: Path) -> tuple[np.ndarray, np.ndarray]:
        return open_array(folder / "samples.npy"), open_array(folder / "seconds.npy")

    samples, seconds = mapped_folder(data.path / ".lengths", lambda: files_stamp([path], VERSION), build, use)
    if data.rows is None:
        return samples, seconds
    return gathered(samples, data.rows), gathered(seconds, data.rows)


def _seconds(samples: np.ndarray) -> np.ndarray:
    return np.round(samples / HOP) / FRAME_RATE
