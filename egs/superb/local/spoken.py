"""Small spoken corpora for the SUPERB tasks, generated with the mini recipe's espeak-ng voices.

They replace the real corpora in tests and in first trials. Scores on them do not predict SUPERB scores. The seed
determines every file. The mini recipe's encoder was trained on its "train" voices, so these voices train here, too. In
tasks with different test speakers, the test uses the "dev" and "test" voices, which the encoder has not heard.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "mini" / "local"))
from speak import SAMPLE_RATE, VOICES, Voice, say  # noqa: E402

TRAIN, DEV, TEST = (list(VOICES[part].values()) for part in ("train", "dev", "test"))
UNHEARD = DEV + TEST
SPEAKERS = TRAIN + UNHEARD  # the number of a speaker is its index
GRAMMAR = (
    ("the", "a", "one", "every", "this"),
    ("old", "small", "happy", "red", "quiet", "young", "tall", "green"),
    ("man", "dog", "house", "river", "teacher", "boat", "child", "garden", "horse", "window"),
    ("sees", "follows", "likes", "carries", "forgets", "paints", "finds", "leaves"),
    ("the", "a", "another", "that"),
    ("bread", "letter", "road", "lamp", "mountain", "coat", "picture", "table", "door", "song"),
)


class Studio:
    """A generator of recordings.

    Args:
        seed: seed of the words, the variation of each take, and the noise.
        noise: standard deviation of the white noise in every recording; full scale is 1.
    """

    def __init__(self, seed: int, noise: float = 0.01) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise = noise

    def sentence(self) -> str:
        """Return a random sentence of the grammar."""
        return " ".join(str(self.rng.choice(words)) for words in GRAMMAR)

    def take(self, text: str, speaker: Voice, seconds: float | None = None) -> np.ndarray:
        """Return a recording, float32 at 16 kHz. Pitch, tempo, level and noise differ between takes.

        Args:
            text: the words.
            speaker: the voice.
            seconds: length to which the recording is cut or padded with noise.
        """
        pitch, rate = self.rng.integers(-6, 7), self.rng.integers(-15, 16)
        voice = dataclasses.replace(speaker, pitch=int(speaker.pitch + pitch), rate=int(speaker.rate + rate))
        wave = say(text, voice)[0] * self.rng.uniform(0.4, 1.0)
        if seconds is not None:
            wave = np.pad(wave, (0, max(0, round(seconds * SAMPLE_RATE) - len(wave))))[: round(seconds * SAMPLE_RATE)]
        return self._noisy(wave)

    def quiet(self, seconds: float) -> np.ndarray:
        """Return only noise."""
        return self._noisy(np.zeros(round(seconds * SAMPLE_RATE)))

    def _noisy(self, wave: np.ndarray) -> np.ndarray:
        return np.clip(wave + self.noise * self.rng.standard_normal(len(wave)), -1, 1).astype(np.float32)


def write(path: Path, wave: np.ndarray) -> None:
    """Write a wav or flac file; the name's extension decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, SAMPLE_RATE)


def lines(path: Path, rows: Sequence[str]) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
