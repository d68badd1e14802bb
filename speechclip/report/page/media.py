"""Recordings and pictures as strings that a page can hold: data URIs and base64 of single bytes."""

from __future__ import annotations

import base64
import io
import os

import numpy as np
import soundfile
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from speechclip.common.constants import HOP, SAMPLE_RATE
from speechclip.data.images import load_image

MEL_BANDS = 64
WINDOW = 512  # samples of a spectrogram's window, 32 ms
RANGE = 70.0  # dB below the loudest that are drawn


def audio_uri(wave: NDArray[np.float32]) -> str:
    """A 16 kHz waveform [N] as MP3 of some 36 kbit/s, which every browser plays."""
    buffer = io.BytesIO()
    clipped = np.clip(wave, -1.0, 1.0)
    soundfile.write(
        buffer, clipped, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III",
        bitrate_mode="VARIABLE", compression_level=0.9,
    )  # fmt: skip
    return _uri("audio/mpeg", buffer.getvalue())


def spectrogram(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mel power spectrum [bands, frames] of a 16 kHz waveform in dB, from 0 for the loudest down to -RANGE.

    A column for every frame of the speech encoder.
    """
    import librosa

    power = librosa.feature.melspectrogram(
        y=wave, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MEL_BANDS, fmax=SAMPLE_RATE / 2
    )
    decibel: NDArray[np.float64] = librosa.power_to_db(power, ref=np.max, top_db=RANGE)
    return decibel


def spectrogram_uri(wave: NDArray[np.float32]) -> str:
    """The spectrogram of a 16 kHz waveform as a grey picture, high frequencies on top, loud white."""
    grey = (spectrogram(wave)[::-1] / RANGE + 1.0) * 255.0
    return _picture(Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)), quality=50)


def thumbnail_uri(path: str | os.PathLike[str], side: int = 112) -> str:
    """An image file, shrunk to at most ``side`` pixels a side. Raises UserError for a file that is no image."""
    image = load_image(path)
    image.thumbnail((side, side))
    return _picture(image, quality=72)


def envelope(wave: NDArray[np.float32], points: int) -> NDArray[np.float64]:
    """The largest magnitude of each of ``points`` equal stretches of a waveform, 1 for the loudest of all."""
    edges = np.linspace(0, len(wave), points + 1).astype(int)[:-1]
    loudest = np.maximum.reduceat(np.abs(wave.astype(np.float64)), edges)
    return loudest / max(float(loudest.max()), 1e-9)


def packed(values: ArrayLike) -> str:
    """Values from 0 to 1, any shape, rounded to a byte each, row by row, in base64."""
    bytes_ = (np.asarray(values, dtype=np.float64) * 255.0).round().clip(0, 255).astype(np.uint8)
    return base64.b64encode(bytes_.tobytes()).decode("ascii")


def _picture(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=4)
    return _uri("image/webp", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
