"""Listening conditions: noise at a signal-to-noise ratio (SNR), rooms, telephone, speed and clipping.

Waveforms in, waveforms out, all [n] float32 at 16 kHz. Random choices come from a generator that depends on seed,
utterance and kind of condition only. So every system gets the same signal, and all SNRs of a kind the same noise.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError

Wave = npt.NDArray[np.float32]

CLEAN, WHITE, BABBLE, REVERB, TELEPHONE, SPEED, CLIPPING = (
    "clean", "white", "babble", "reverb", "telephone", "speed", "clipping"
)  # fmt: skip
HELD_OUT = "held_out_speakers"
SPEECH_RANGE = 35.0  # dB; a frame that is this much below the loudest one is not speech
_FRAME = SAMPLE_RATE // 50
BABBLE_VOICES = 6
CLIPPED_SHARE = 0.1  # of the samples of the speech part
TELEPHONE_BAND = (300.0, 3400.0)  # Hz
ROOMS = 24  # simulated rooms per seed
_RT60 = (0.3, 0.7)  # s
_MAX_ORDER = 12  # of the image sources: later reflections are weak and cost most of the time


@dataclass(frozen=True)
class Condition:
    """A listening condition.

    Attributes:
        kind: CLEAN, WHITE, BABBLE, "musan_noise" and other parts of a noise folder, REVERB, TELEPHONE, SPEED, CLIPPING
            or HELD_OUT.
        value: SNR in dB of a noise, factor of SPEED; None for the others.
    """

    kind: str
    value: float | None = None

    @property
    def name(self) -> str:
        """The name in files and tables: "white_10" is white noise at 10 dB."""
        return self.kind if self.value is None else f"{self.kind}_{self.value:g}"

    @property
    def is_noise(self) -> bool:
        """True if the condition adds a noise at an SNR."""
        return self.value is not None and self.kind != SPEED


def generator(seed: int, utterance: str, kind: str) -> np.random.Generator:
    """Return the generator of an utterance in a kind of condition."""
    return np.random.default_rng([seed, zlib.crc32(utterance.encode()), zlib.crc32(kind.encode())])


def speech_part(wave: Wave) -> npt.NDArray[np.bool_]:
    """Return True for the samples of the frames of 20 ms that are at most 35 dB below the loudest frame, [n]."""
    frames = math.ceil(len(wave) / _FRAME)
    padded = np.zeros(frames * _FRAME)
    padded[: len(wave)] = wave
    energy = (padded.reshape(frames, _FRAME) ** 2).mean(axis=1)
    loud = energy >= energy.max() * 10 ** (-SPEECH_RANGE / 10)
    return np.repeat(loud & (energy > 0), _FRAME)[: len(wave)]


def add_noise(wave: Wave, noise: npt.NDArray[np.floating], snr: float) -> Wave:
    """Return a recording with noise at an SNR over its speech part.

    Args:
        wave: [n].
        noise: [n], at any level.
        snr: in dB; infinity returns ``wave`` itself.
    Raises:
        ValueError: the recording or the noise is silent over the speech part, or the lengths differ.
    """
    if math.isinf(snr) and snr > 0:
        return wave
    if wave.shape != noise.shape:
        raise ValueError(f"a recording {wave.shape} and noise {noise.shape}")
    inside = speech_part(wave)
    if not inside.any():
        raise ValueError("the recording is silent")
    signal, noise = wave.astype(np.float64), noise.astype(np.float64)
    level = (noise[inside] ** 2).mean()
    if level == 0:
        raise ValueError("the noise is silent over the speech part")
    gain = math.sqrt((signal[inside] ** 2).mean() / level / 10 ** (snr / 10))
    return (signal + gain * noise).astype(np.float32)


def white_noise(rng: np.random.Generator, length: int) -> npt.NDArray[np.float64]:
    """Return white Gaussian noise, [length]."""
    return rng.standard_normal(length)


def cut_noise(rng: np.random.Generator, noise: Wave, length: int) -> npt.NDArray[np.float64]:
    """Return a random part of a noise, [length]. A noise that is too short is repeated."""
    if len(noise) < length:
        noise = np.tile(noise, math.ceil(length / len(noise)) + 1)
    start = int(rng.integers(len(noise) - length + 1))
    return noise[start : start + length].astype(np.float64)


def babble_noise(rng: np.random.Generator, voices: Sequence[Wave], length: int) -> npt.NDArray[np.float64]:
    """Return the sum of random parts of recordings, [length]. All voices are equally loud."""
    total = np.zeros(length)
    for voice in voices:
        part = cut_noise(rng, voice, length)
        inside = speech_part(voice)
        total += part / math.sqrt(float((voice[inside].astype(np.float64) ** 2).mean()))
    return total


def reverberate(wave: Wave, response: npt.NDArray[np.floating]) -> Wave:
    """Return a recording in a room, [n], with the direct sound at the same time and the speech part equally loud.

    Args:
        wave: [n].
        response: impulse response of the room, [m].
    """
    from scipy.signal import fftconvolve

    direct = int(np.abs(response).argmax())
    wet = fftconvolve(wave.astype(np.float64), response.astype(np.float64))[direct : direct + len(wave)]
    inside = speech_part(wave)
    level = (wet[inside] ** 2).mean()
    gain = math.sqrt(float((wave[inside].astype(np.float64) ** 2).mean()) / level) if level > 0 else 1.0
    return (gain * wet).astype(np.float32)


def simulate_room(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the impulse response of a random shoe-box room, simulated with pyroomacoustics.

    Raises:
        UserError: pyroomacoustics is not installed.
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UserError(
            "pyroomacoustics: is not installed. Run tools/install.sh --extras asr, or give impulse responses."
        ) from error
    size = rng.uniform([3.0, 3.0, 2.4], [7.0, 6.0, 3.2])
    absorption, order = pyroomacoustics.inverse_sabine(float(rng.uniform(*_RT60)), size)
    room = pyroomacoustics.ShoeBox(
        size, fs=SAMPLE_RATE, materials=pyroomacoustics.Material(absorption), max_order=min(order, _MAX_ORDER)
    )
    room.add_source(rng.uniform(0.5, size - 0.5))
    room.add_microphone(rng.uniform(0.5, size - 0.5))
    room.compute_rir()
    return np.asarray(room.rir[0][0], dtype=np.float64)


def telephone(wave: Wave) -> Wave:
    """Return a recording limited to the telephone band of 300 to 3400 Hz (Butterworth, order 4, in both directions)."""
    from scipy.signal import butter, sosfiltfilt

    sections = butter(4, TELEPHONE_BAND, btype="bandpass", fs=SAMPLE_RATE, output="sos")
    room = max(0, min(len(wave) - 1, 3 * (2 * len(sections) + 1)))
    return np.ascontiguousarray(sosfiltfilt(sections, wave.astype(np.float64), padlen=room), dtype=np.float32)


def change_speed(wave: Wave, factor: float) -> Wave:
    """Return a recording that is played ``factor`` times as fast. Pitch and tempo change together, as in Kaldi."""
    return np.ascontiguousarray(soxr.resample(wave, SAMPLE_RATE * factor, SAMPLE_RATE, quality="HQ"), dtype=np.float32)


def clip(wave: Wave, share: float = CLIPPED_SHARE) -> Wave:
    """Return a recording whose loudest samples are clipped.

    Args:
        wave: [n].
        share: of the samples of the speech part that are clipped, between 0 and 1.
    """
    inside = speech_part(wave)
    limit = float(np.quantile(np.abs(wave[inside]), 1 - share)) if inside.any() else 1.0
    return np.clip(wave, -limit, limit).astype(np.float32)
