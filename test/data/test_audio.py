"""Audio and image files: what is read, and one line for everything that cannot be."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image

from speechclip.common.errors import UserError
from speechclip.data.audio import SAMPLE_RATE, check_audio, load_audio, num_samples
from speechclip.data.images import check_image, load_image

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "aiff": ("AIFF", "PCM_16"),
}


def tone(seconds: float = 0.5, rate: int = SAMPLE_RATE, pitch: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, wave: np.ndarray, rate: int = SAMPLE_RATE, kind: str = "wav") -> Path:
    name, subtype = FORMATS[kind]
    soundfile.write(path, wave, rate, format=name, subtype=subtype)
    return path


def cut(path: Path, fraction: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


@pytest.mark.parametrize("suffix", ["", ".wav", ".mp3", ".raw", ".txt"])
@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_told_by_content(tmp_path: Path, kind: str, suffix: str) -> None:
    path = write(tmp_path / f"with space{suffix}", tone(), kind=kind)
    wave = load_audio(path)
    assert wave.dtype == np.float32
    assert wave.shape == (8000,)
    assert num_samples(path) == check_audio(path) == 8000
    lossy = kind in ("mp3", "ogg", "opus")
    assert np.abs(wave - tone())[500:-500].max() < (0.1 if lossy else 1e-4)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([tone(pitch=300), tone(pitch=500)], axis=1)
    path = write(tmp_path / "a", stereo, kind="float")
    assert np.array_equal(load_audio(path), stereo.mean(axis=1))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("frames", [3, 1000, 4411, 4412, 12345])
def test_resampling(tmp_path: Path, rate: int, frames: int) -> None:
    wave = tone(frames / rate, rate)
    path = write(tmp_path / "a", wave, rate, kind="float")
    expected = soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")
    assert np.array_equal(load_audio(path), expected)
    assert num_samples(path) == len(expected)


def broken(function, path: Path) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError) as caught:
        function(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("function", [load_audio, num_samples, check_audio])
def test_missing_and_empty(tmp_path: Path, function) -> None:  # type: ignore[no-untyped-def]
    assert broken(function, tmp_path / "no.wav") == "missing audio file"
    assert broken(function, tmp_path) == "not a file"
    (tmp_path / "empty").touch()
    assert broken(function, tmp_path / "empty") == "empty audio file (0 bytes)"
    (tmp_path / "text.wav").write_text("this is not audio at all\n" * 10)
    assert broken(function, tmp_path / "text.wav").startswith("not readable as audio (")
    for kind in ("wav", "float"):
        assert broken(function, write(tmp_path / kind, np.zeros(0, np.float32), kind=kind)) == "zero-length audio"


@pytest.mark.parametrize("function", [load_audio, num_samples, check_audio])
@pytest.mark.parametrize("kind", ["wav", "wav24", "float"])
def test_truncated_wav(tmp_path: Path, function, kind: str) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "a.wav", tone(), kind=kind)
    size = path.stat().st_size
    assert broken(function, cut(path, 0.6)).startswith("truncated audio: ")
    path = write(tmp_path / "a.wav", tone(), kind=kind)
    path.write_bytes(path.read_bytes()[: size - 1])
    assert broken(function, path).startswith("truncated audio: ")
    path.write_bytes(path.read_bytes()[:30])
    assert broken(function, path) == "truncated audio: the wav header ends before the samples"


def test_truncated_wav_says_how_much_is_left(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone())
    path.write_bytes(path.read_bytes()[: 44 + 1000])
    assert broken(load_audio, path) == "truncated audio: 1000 of 16000 bytes of samples"


@pytest.mark.parametrize("function", [load_audio, check_audio])
@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg", "opus", "aiff"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95])
def test_truncated(tmp_path: Path, function, kind: str, fraction: float) -> None:  # type: ignore[no-untyped-def]
    noise = tone(5) + np.random.default_rng(0).normal(0, 0.1, 5 * SAMPLE_RATE).astype(np.float32)
    path = write(tmp_path / "a", noise, kind=kind)
    assert "truncated" in broken(function, cut(path, fraction))


@pytest.mark.parametrize("function", [load_audio, num_samples])
@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_truncated_ogg_is_seen_in_the_header(tmp_path: Path, function, kind: str) -> None:  # type: ignore[no-untyped-def]
    path = cut(write(tmp_path / "a", tone(10), kind=kind), 0.8)
    assert broken(function, path) == "truncated audio: the ogg stream has no last page"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [load_audio, check_audio])
def test_not_finite(tmp_path: Path, function, value: float) -> None:  # type: ignore[no-untyped-def]
    wave = tone()
    wave[4000] = value
    assert broken(function, write(tmp_path / "a", wave, kind="float")) == "NaN or infinite samples"


def test_lengths_that_the_header_does_not_say(tmp_path: Path) -> None:
    flac = write(tmp_path / "a.flac", tone(), kind="flac")
    data = bytearray(flac.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that hold the number of samples
    data[22:26] = bytes(4)
    flac.write_bytes(data)
    assert broken(num_samples, flac).startswith("the header does not say how long the audio is")

    wav = write(tmp_path / "a.wav", tone())
    data = bytearray(wav.read_bytes())
    assert data[36:40] == b"data"
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    wav.write_bytes(data)
    assert num_samples(wav) == len(load_audio(wav)) == 8000

    mp3 = write(tmp_path / "a.mp3", tone(), kind="mp3")
    mp3.write_bytes(mp3.read_bytes().replace(b"Xing", b"\0\0\0\0").replace(b"Info", b"\0\0\0\0"))
    assert broken(num_samples, mp3).startswith("mp3 without a length tag may be cut short")


def test_wav_with_other_chunks_before_and_after(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone())
    data = path.read_bytes()
    extra = b"LIST" + struct.pack("<I", 5) + b"hello\0"  # odd length, padded
    body = data[12:36] + extra + data[36:] + extra
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    assert len(load_audio(path)) == 8000


def save_image(path: Path, mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("suffix", "mode"), [("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGBA"), ("png", "P")]
)
def test_images(tmp_path: Path, suffix: str, mode: str) -> None:
    path = save_image(tmp_path / f"a.{suffix}", mode)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (160, 120))
    assert np.asarray(image).shape == (120, 160, 3)
    check_image(path)


@pytest.mark.parametrize("function", [load_image, check_image])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_truncated_images(tmp_path: Path, function, suffix: str) -> None:  # type: ignore[no-untyped-def]
    for fraction in (0.3, 0.7, 0.98):
        path = cut(save_image(tmp_path / f"a.{suffix}"), fraction)
        assert "truncated or corrupt image (" in broken(function, path)


@pytest.mark.parametrize("function", [load_image, check_image])
def test_other_bad_images(tmp_path: Path, function) -> None:  # type: ignore[no-untyped-def]
    assert broken(function, tmp_path / "no.jpg") == "missing image file"
    assert broken(function, tmp_path) == "not a file"
    (tmp_path / "empty.jpg").touch()
    assert broken(function, tmp_path / "empty.jpg") == "empty image file (0 bytes)"
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    assert broken(function, tmp_path / "text.jpg") == "not an image"
