"""Audio files as the speech encoders want them: mono, 16 kHz, float32, and never silently cut short.

Any format libsndfile knows (wav, flac, mp3, ogg vorbis and opus, aiff, ...), told by the content whatever the name
says. libsndfile reads what there is of a truncated wav, aiff or ogg file without a word, so those are checked here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError

_OPEN_ENDED = 0x7FFFF000  # bytes; a RIFF size from here on is a pipe's "unknown", as sox and ffmpeg write it
_UNKNOWN_FRAMES = 1 << 40  # libsndfile's count for a flac written to a pipe is above this
_MP3_SEARCH = 8192  # bytes after the ID3 tag in which the first frame's length tag lies
_OGG_TAIL = 65536 + 512  # bytes; an ogg page is shorter
_INTEGER_PCM = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32")


@dataclass(frozen=True)
class _Header:
    frames: int
    rate: int  # Hz
    format: str
    subtype: str


def load_audio(path: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Decode a file to mono (mean of the channels) at 16 kHz (soxr, HQ).

    Returns:
        Samples, float32 [num_samples], full scale at 1.

    Raises:
        UserError: the file is missing, not audio, truncated, of zero length, or holds NaN or infinite samples.
    """
    path = Path(path)
    header = _read_header(path)
    wave = _decode(path, header)  # [frames, channels]
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
    if header.rate != SAMPLE_RATE:
        mono = soxr.resample(mono, header.rate, SAMPLE_RATE, quality="HQ")
    if not len(mono):
        raise UserError(f"{path}: zero-length audio")
    return np.ascontiguousarray(mono, dtype=np.float32)


def num_samples(path: str | os.PathLike[str]) -> int:
    """Number of samples :func:`load_audio` returns, from the header alone.

    Raises:
        UserError: the file is missing, not audio, visibly truncated, or of zero length.
    """
    path = Path(path)
    header = _read_header(path)
    return _at_sample_rate(path, header.frames, header.rate)


def check_audio(path: str | os.PathLike[str]) -> int:
    """As :func:`num_samples`, and make sure that :func:`load_audio` will succeed (integer wav needs no decoding)."""
    path = Path(path)
    header = _read_header(path)
    if header.format not in ("WAV", "WAVEX") or header.subtype not in _INTEGER_PCM:
        _decode(path, header)
    return _at_sample_rate(path, header.frames, header.rate)


def _at_sample_rate(path: Path, frames: int, rate: int) -> int:
    """Length after resampling, rounded as soxr rounds it: to the nearest, halves up."""
    samples = (2 * frames * SAMPLE_RATE + rate) // (2 * rate)
    if not samples:
        raise UserError(f"{path}: zero-length audio")
    return samples


def _read_header(path: Path) -> _Header:
    """What the header says; UserError for everything that can be seen from it."""
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'missing audio file'}")
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path}: empty audio file (0 bytes)")
    with path.open("rb", buffering=0) as handle:
        magic = handle.read(4)
        if magic in (b"RIFF", b"RIFX"):
            _check_riff(path, handle, size, "little" if magic == b"RIFF" else "big")
        elif magic == b"OggS":
            _check_ogg(path, handle, size)
        elif magic == b"FORM":
            missing = int.from_bytes(handle.read(4), "big") + 8 - size
            if missing > 0:
                raise UserError(f"{path}: truncated audio: the last {missing} bytes are missing")
        try:
            with _open(handle) as sound:
                frames, rate, kind, subtype = sound.frames, sound.samplerate, sound.format, sound.subtype
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise UserError(f"{path}: not readable as audio ({_reason(error)})") from error
        if frames >= _UNKNOWN_FRAMES:
            raise UserError(
                f"{path}: the header does not say how long the audio is (write the file again, not to a pipe)"
            )
        if frames == 0:
            raise UserError(f"{path}: zero-length audio")
        if kind == "MP3" and not _mp3_has_length(handle):
            raise UserError(
                f"{path}: mp3 without a length tag may be cut short (ffmpeg -i IN.mp3 -c copy OUT.mp3 adds it)"
            )
    return _Header(frames, rate, kind, subtype)


def _decode(path: Path, header: _Header) -> npt.NDArray[np.float32]:
    """All samples [frames, channels]; UserError where they are too few, not finite, or cannot be decoded."""
    try:
        with path.open("rb", buffering=0) as handle, _open(handle) as sound:
            wave = sound.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{path}: truncated or corrupt audio ({_reason(error)})") from error
    if len(wave) < header.frames:
        raise UserError(f"{path}: truncated audio: {len(wave)} of {header.frames} frames")
    if not np.isfinite(wave).all():
        raise UserError(f"{path}: NaN or infinite samples")
    return wave


def _open(handle: FileIO) -> soundfile.SoundFile:
    """libsndfile on an open file: given a name, it would take the format of some from the suffix."""
    handle.seek(0)
    return soundfile.SoundFile(handle.fileno(), closefd=False)


def _check_riff(path: Path, handle: FileIO, size: int, order: Literal["little", "big"]) -> None:
    """UserError when the data chunk of a wav file is longer than the file; ``handle`` may stand anywhere."""
    position = 12
    while position + 8 <= size:
        handle.seek(position)
        name, length = handle.read(4), int.from_bytes(handle.read(4), order)
        start = position + 8
        if name == b"data":
            if start + length > size and length < _OPEN_ENDED:
                raise UserError(f"{path}: truncated audio: {size - start} of {length} bytes of samples")
            return
        position = start + length + length % 2
    raise UserError(f"{path}: truncated audio: the wav header ends before the samples")


def _check_ogg(path: Path, handle: FileIO, size: int) -> None:
    """UserError when the last page of an ogg file is not marked as the last of its stream."""
    handle.seek(max(0, size - _OGG_TAIL))
    tail = handle.read()
    page = tail.rfind(b"OggS")
    complete = False
    if page >= 0 and page + 27 <= len(tail):
        flags, segments = tail[page + 5], tail[page + 26]
        table = tail[page + 27 : page + 27 + segments]
        complete = bool(flags & 4) and len(table) == segments and page + 27 + segments + sum(table) <= len(tail)
    if not complete:
        raise UserError(f"{path}: truncated audio: the ogg stream has no last page")


def _mp3_has_length(handle: FileIO) -> bool:
    """Whether the first frame of an mp3 file holds the number of frames; without it, libsndfile estimates
    the length from the first frame's bit rate and reads no further than that.
    """
    handle.seek(0)
    tag = handle.read(10)
    start = 0
    if tag[:3] == b"ID3" and len(tag) == 10:  # its size in four bytes of seven bits
        start = 10 + sum(byte << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=True))
    handle.seek(start)
    head = handle.read(_MP3_SEARCH)
    return any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))


def _reason(error: Exception) -> str:
    """libsndfile's own words without the file name, which the caller has already given."""
    text = str(getattr(error, "error_string", error))
    return text.splitlines()[0].strip().rstrip(".") if text else type(error).__name__
