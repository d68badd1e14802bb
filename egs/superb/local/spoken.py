"""Small spoken corpora for the SUPERB tasks, made on this machine with the mini recipe's espeak-ng voices.

They stand in for the real corpora in tests, and let a newcomer see every task run: scores on them say nothing about
SUPERB. Every file follows from the seed. The mini recipe's encoder was trained on its "train" voices, so those train
here too; who tests, in the tasks whose speakers differ, are the "dev" and "test" voices, which it has not heard.
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
SPEAKERS = TRAIN + UNHEARD  # numbers of speakers are places in it
GRAMMAR = (
    ("the", "a", "one", "every", "this"),
    ("old", "small", "happy", "red", "quiet", "young", "tall", "green"),
    ("man", "dog", "house", "river", "teacher", "boat", "child", "garden", "horse", "window"),
    ("sees", "follows", "likes", "carries", "forgets", "paints", "finds", "leaves"),
    ("the", "a", "another", "that"),
    ("bread", "letter", "road", "lamp", "mountain", "coat", "picture", "table", "door", "song"),
)


class Studio:
    """Speaks and writes, all from one seed.

    Args:
        seed: of words, of how each take varies, and of the noise.
        noise: standard deviation of the white noise under every recording; full scale is 1.
    """

    def __init__(self, seed: int, noise: float = 0.01) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise = noise

    def sentence(self) -> str:
        """A sentence of the grammar."""
        return " ".join(str(self.rng.choice(words)) for words in GRAMMAR)

    def take(self, text: str, speaker: Voice, seconds: float | None = None) -> np.ndarray:
        """A recording of ``text``, float32 at 16 kHz: pitch, tempo, level and noise differ from take to take.

        ``seconds``: cut or padded with noise to this length.
        """
        pitch, rate = self.rng.integers(-6, 7), self.rng.integers(-15, 16)
        voice = dataclasses.replace(speaker, pitch=int(speaker.pitch + pitch), rate=int(speaker.rate + rate))
        wave = say(text, voice)[0] * self.rng.uniform(0.4, 1.0)
        if seconds is not None:
            wave = np.pad(wave, (0, max(0, round(seconds * SAMPLE_RATE) - len(wave))))[: round(seconds * SAMPLE_RATE)]
        return self._noisy(wave)

    def quiet(self, seconds: float) -> np.ndarray:
        """Noise alone."""
        return self._noisy(np.zeros(round(seconds * SAMPLE_RATE)))

    def _noisy(self, wave: np.ndarray) -> np.ndarray:
        return np.clip(wave + self.noise * self.rng.standard_normal(len(wave)), -1, 1).astype(np.float32)


def write(path: Path, wave: np.ndarray) -> None:
    """A wav or flac file, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, SAMPLE_RATE)


def lines(path: Path, rows: Sequence[str]) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
