"""Recordings and images as strings inside a page: data URIs and bytes in base64."""

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
RANGE = 70.0  # dB that are drawn, below the loudest


def audio_uri(wave: NDArray[np.float32]) -> str:
    """Return a 16 kHz waveform [N] as MP3 of about 36 kbit/s, which every browser plays."""
    buffer = io.BytesIO()
    clipped = np.clip(wave, -1.0, 1.0)
    soundfile.write(
        buffer, clipped, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III",
        bitrate_mode="VARIABLE", compression_level=0.9,
    )  # fmt: skip
    return _uri("audio/mpeg", buffer.getvalue())


def spectrogram(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mel power spectrum [bands, frames] of a 16 kHz waveform in dB, from -RANGE to 0, the loudest.

    The frames are those of the speech encoder.
    """
    import librosa

    power = librosa.feature.melspectrogram(
        y=wave, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MEL_BANDS, fmax=SAMPLE_RATE / 2
    )
    decibel: NDArray[np.float64] = librosa.power_to_db(power, ref=np.max, top_db=RANGE)
    return decibel


def spectrogram_uri(wave: NDArray[np.float32]) -> str:
    """Return the spectrogram of a 16 kHz waveform as a grey image, with high frequencies at the top and loud white."""
    grey = (spectrogram(wave)[::-1] / RANGE + 1.0) * 255.0
    return _picture(Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)), quality=50)


def thumbnail_uri(path: str | os.PathLike[str], side: int = 112) -> str:
    """Return an image file, reduced to at most ``side`` pixels per side.

    Raises:
        UserError: the file is not an image.
    """
    image = load_image(path)
    image.thumbnail((side, side))
    return _picture(image, quality=72)


def envelope(wave: NDArray[np.float32], points: int) -> NDArray[np.float64]:
    """Return the largest magnitude of each of ``points`` equal parts of a waveform, relative to the largest of all."""
    edges = np.linspace(0, len(wave), points + 1).astype(int)[:-1]
    loudest = np.maximum.reduceat(np.abs(wave.astype(np.float64)), edges)
    return loudest / max(float(loudest.max()), 1e-9)


def packed(values: ArrayLike) -> str:
    """Return values from 0 to 1, of any shape, as base64 of one byte per value, row by row."""
    bytes_ = (np.asarray(values, dtype=np.float64) * 255.0).round().clip(0, 255).astype(np.uint8)
    return base64.b64encode(bytes_.tobytes()).decode("ascii")


def _picture(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=4)
    return _uri("image/webp", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
