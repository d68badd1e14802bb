"""The utterances of a data directory in a listening condition, and the noises and rooms behind it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from speechclip.common.errors import UserError
from speechclip.data import conditions as c
from speechclip.data.audio import load_audio
from speechclip.data.conditions import Condition, Wave
from speechclip.data.dataset import Batch, Crop, WaveSource
from speechclip.data.kaldi import DataDir

SUFFIXES = (".wav", ".flac")
SNRS = (20.0, 10.0, 5.0, 0.0)  # dB
SPEEDS = (0.9, 1.1)
_TRIES = 20  # parts of a noise recording that are drawn until one is not silent


class Interference:
    """The noises and rooms that conditions draw from.

    Args:
        data: the utterances that babble is made of.
        noise_dir: a folder in MUSAN's layout: PART/SOURCE/*.wav with the parts noise, music and speech. "" for none.
        rir_dir: a folder of impulse responses. "" simulates rooms.
        seed: of all random choices.
    Raises:
        UserError: a folder has no recording.
    """

    def __init__(self, data: DataDir, noise_dir: str = "", rir_dir: str = "", seed: int = 0) -> None:
        self.data, self.seed = data, seed
        self.parts = {f"musan_{part.name}": _recordings(part) for part in _noise_parts(noise_dir)}
        self._responses = _recordings(Path(rir_dir)) if rir_dir else None
        self._load = functools.lru_cache(maxsize=64)(load_audio)
        self._room = functools.lru_cache(maxsize=None)(self._simulated)

    def conditions(self, snrs: Sequence[float] = SNRS) -> list[Condition]:
        """Return all conditions: clean first, every noise at every SNR, then the others."""
        noises = [Condition(kind, snr) for kind in (c.WHITE, c.BABBLE, *self.parts) for snr in snrs]
        speeds = [Condition(c.SPEED, factor) for factor in SPEEDS]
        others = [Condition(kind) for kind in (c.REVERB, c.TELEPHONE, c.CLIPPING)]
        return [Condition(c.CLEAN), *noises, *others, *speeds, Condition(c.HELD_OUT)]

    def draw(self, kinds: Sequence[str], snr: tuple[float, float], rng: np.random.Generator) -> Condition:
        """Draw a condition: a kind, and for a noise an SNR in dB.

        Raises:
            UserError: an unknown kind.
        """
        kind = kinds[int(rng.integers(len(kinds)))]
        if kind in (c.WHITE, c.BABBLE) or kind in self.parts:
            return Condition(kind, float(rng.uniform(*snr)))
        if kind not in (c.REVERB, c.TELEPHONE, c.CLIPPING):
            known = (c.WHITE, c.BABBLE, *self.parts, c.REVERB, c.TELEPHONE, c.CLIPPING)
            raise UserError(f"data.augment.kinds: {kind!r} is not one of: {', '.join(known)}. Choose a known one.")
        return Condition(kind)

    def apply(self, condition: Condition, index: int, wave: Wave, variant: str = "") -> Wave:
        """Return an utterance in a condition.

        Args:
            condition: the condition. CLEAN and HELD_OUT return ``wave`` itself.
            index: position of the utterance in the data directory.
            wave: its waveform, [n].
            variant: another variant has another noise or room.
        Raises:
            UserError: the recording or the noise is silent.
        """
        utterance, kind = self.data.utterances[index], condition.kind
        rng = c.generator(self.seed, utterance.id + variant, kind)
        if kind in (c.CLEAN, c.HELD_OUT):
            return wave
        if kind == c.TELEPHONE:
            return c.telephone(wave)
        if kind == c.CLIPPING:
            return c.clip(wave)
        if kind == c.REVERB:
            return c.reverberate(wave, self._response(rng))
        assert condition.value is not None
        if kind == c.SPEED:
            return c.change_speed(wave, condition.value)
        if np.isposinf(condition.value):
            return wave
        try:
            return c.add_noise(wave, self._noise(kind, index, rng, wave), condition.value)
        except ValueError as error:
            raise UserError(f"{utterance.wav}: {error}. {condition.name} cannot be made.") from error

    def _noise(self, kind: str, index: int, rng: np.random.Generator, wave: Wave) -> np.ndarray:
        if kind == c.WHITE:
            return c.white_noise(rng, len(wave))
        if kind == c.BABBLE:
            return c.babble_noise(rng, [self._load(path) for path in self._voices(index, rng)], len(wave))
        if kind not in self.parts:
            raise UserError(
                f"{kind}: is not a part of the noise folder (known: {', '.join(self.parts) or 'none'})."
                " Choose a known one."
            )
        inside = c.speech_part(wave)
        for _ in range(_TRIES):
            path = self.parts[kind][int(rng.integers(len(self.parts[kind])))]
            noise = c.cut_noise(rng, self._load(path), len(wave))
            if (noise[inside] ** 2).any():
                break
        return noise

    def _voices(self, index: int, rng: np.random.Generator) -> list[Path]:
        """Choose utterances of other images, by other speakers if there are any."""
        table = self.data.utterances
        other = table.images != table.images[index]
        strangers = np.flatnonzero(other & (table.speakers != table.speakers[index]))
        strangers = strangers if len(strangers) else np.flatnonzero(other)
        if not len(strangers):
            raise UserError(f"{self.data.path}: babble needs utterances of at least two images. Leave babble out.")
        chosen = rng.choice(len(strangers), size=c.BABBLE_VOICES, replace=len(strangers) < c.BABBLE_VOICES)
        return [Path(table.wavs[int(strangers[at])]) for at in chosen]

    def _response(self, rng: np.random.Generator) -> np.ndarray:
        if self._responses is not None:
            return self._load(self._responses[int(rng.integers(len(self._responses)))])
        room: np.ndarray = self._room(int(rng.integers(c.ROOMS)))
        return room

    def _simulated(self, number: int) -> np.ndarray:
        return c.simulate_room(c.generator(self.seed, str(number), "room"))


class ConditionedSource(WaveSource):
    """The waveforms of a data directory in one condition.

    Args:
        interference: noises and rooms.
        condition: the condition.
    """

    def __init__(self, interference: Interference, condition: Condition) -> None:
        super().__init__(interference.data)
        self.interference, self.condition = interference, condition
        if condition.kind == c.SPEED and condition.value:
            self.lengths, self.samples = self.lengths / condition.value, self.samples / condition.value

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Read utterances. See :class:`speechclip.data.dataset.SpeechSource`."""
        if crop is not None:
            raise ValueError("conditions are for whole utterances")
        waves = [self.interference.apply(self.condition, index, load_audio(self.path(index))) for index in indices]
        return Batch(torch.tensor(list(indices)), None, None, tuple(torch.from_numpy(wave) for wave in waves))


def _noise_parts(folder: str) -> list[Path]:
    """Return the folders noise, music and speech that a noise folder has, in this order."""
    if not folder:
        return []
    parts = [Path(folder) / name for name in ("noise", "music", "speech") if (Path(folder) / name).is_dir()]
    if not parts:
        raise UserError(f"{folder}: has no folder noise, music or speech. Give a folder in MUSAN's layout.")
    return parts


def _recordings(folder: Path) -> list[Path]:
    """Return the recordings below a folder, sorted."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{folder}: has no .wav or .flac file. Add recordings.")
    return found
