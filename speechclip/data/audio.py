"""Audio files as mono, 16 kHz, float32 waveforms.

Supported are the formats of libsndfile that store their length: wav, RF64, w64, flac, mp3, ogg (vorbis, opus), aiff,
au, caf, NIST SPHERE and HTK. The content decides on the format, the name does not. A file is read completely, or it is
refused with one line.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError, first_line
from speechclip.data.containers import AudioProblem, check_format, check_single_flac, find_parts
from speechclip.data.messages import MPG123, log_stderr
from speechclip.data.sources import Content, Source, open_source

MIN_RATE, MAX_RATE = 1000, 768_000  # Hz; another rate is a damaged header, and resampling would take all memory
SILENCE = 2.0**-15  # full scale is 1; a recording with a smaller range than one 16-bit step has no signal

_NEVER_MP3 = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"OggS", b"fLaC", b"NIST", b".snd", b"caff")  # first bytes
_UNKNOWN_FRAMES = 1 << 40  # the number of frames that libsndfile gives for a flac file without a length is larger
_BLOCK = 4000  # samples
_INTEGER_PCM = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32")


@dataclass(frozen=True)
class _Part:
    """One recording of a file.

    Attributes:
        content: its bytes, None for the whole file.
        frames: number of samples per channel.
        rate: in Hz.
        format: libsndfile's name of the container.
        subtype: libsndfile's name of the encoding.
    """

    content: bytes | None
    frames: int
    rate: int
    format: str
    subtype: str


def load_audio(source: Source, name: str = "") -> npt.NDArray[np.float32]:
    """Decode a recording to mono (mean of the channels) at 16 kHz (soxr, HQ).

    Joined mp3 and ogg files are read completely, one recording after the other.

    Args:
        source: path of a file, or its content.
        name: the content's name in error messages.

    Returns:
        Samples, float32 [num_samples], full scale at 1.

    Raises:
        UserError: the file is missing, not audio, unsupported or truncated.
        UserError: it has no samples, or NaN or infinite samples.
    """
    with _reading(source, name) as (name, handle, parts):
        waves = []
        for part in parts:
            wave = _decode(name, handle, part)  # [frames, channels]
            mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
            waves.append(resample(mono, part.rate))
    mono = waves[0] if len(waves) == 1 else np.concatenate(waves)
    if not len(mono):
        raise UserError(f"{name}: zero-length audio. Record it again.")
    return np.ascontiguousarray(mono, dtype=np.float32)


def num_samples(source: Source, name: str = "") -> int:
    """Return the number of samples that :func:`load_audio` returns. The samples are not decoded.

    Args:
        source: path of a file, or its content.
        name: the content's name in error messages.

    Raises:
        UserError: the file is missing, not audio, unsupported or has no samples, or its headers show that it is cut.
    """
    with _reading(source, name) as (name, _, parts):
        return _total_samples(name, parts)


def check_audio(source: Source, name: str = "") -> int:
    """Check that :func:`load_audio` reads a recording, and that it is not silent.

    Args:
        source: path of a file, or its content.
        name: the content's name in error messages.

    Returns:
        The number of samples at 16 kHz.

    Raises:
        UserError: the file cannot be used; see :func:`load_audio` and :func:`check_not_silent`.
    """
    with _reading(source, name) as (name, handle, parts):
        total = _total_samples(name, parts)
        waves = []
        for part in parts:
            plain = part.format in ("WAV", "WAVEX") and part.subtype in _INTEGER_PCM
            if plain and _has_signal(handle, part):  # integers are finite, and the container is complete
                return total
            waves.append(_decode(name, handle, part))
    check_not_silent(name, *waves)
    return total


def check_not_silent(name: str | os.PathLike[str], *waves: npt.NDArray[np.floating]) -> None:
    """Check that a recording has a signal: queries and corpora share this rule.

    Args:
        name: the recording in the error message.
        waves: its parts, each [n] or [n, channels], full scale at 1.

    Raises:
        UserError: all samples of all parts are the same, up to one 16-bit step.
    """
    lowest, highest = min(float(wave.min()) for wave in waves), max(float(wave.max()) for wave in waves)
    if highest - lowest < SILENCE:
        value = "zero" if max(highest, -lowest) < SILENCE else "the same"
        raise UserError(f"{os.fspath(name)}: silence: every sample is {value}. Record it again.")


def resample(mono: npt.NDArray[np.floating], rate: int) -> npt.NDArray[np.floating]:
    """Resample a waveform [n] from a rate in Hz to 16 kHz with soxr, HQ."""
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")


def _total_samples(name: str, parts: list[_Part]) -> int:
    """Return the length after resampling. soxr rounds it to the nearest integer, halves up."""
    samples = sum((2 * part.frames * SAMPLE_RATE + part.rate) // (2 * part.rate) for part in parts)
    if not samples:
        raise UserError(f"{name}: zero-length audio. Record it again.")
    return samples


@contextlib.contextmanager
def _reading(source: Source, name: str) -> Iterator[tuple[str, BinaryIO, list[_Part]]]:
    """Open a file or its content. Yield its name, the open file and its recordings."""
    name, handle, size = open_source(source, name, "audio")
    with handle:
        try:
            contents: Sequence[bytes | None] = find_parts(handle, size) or [None]
            yield name, handle, [_read_header(name, handle, item) for item in contents]
        except AudioProblem as problem:
            raise UserError(f"{name}: {problem}. Check the path.") from problem


def _read_header(name: str, handle: BinaryIO, content: bytes | None) -> _Part:
    """Return the properties of a recording. An AudioProblem says why it cannot be used."""
    try:
        with _open(name, handle, content) as sound:
            part = _Part(content, sound.frames, sound.samplerate, sound.format, sound.subtype)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioProblem(f"not readable as audio ({_reason(error)}). Convert the file to wav or flac.") from error
    check_format(part.format, part.subtype)
    if part.format == "MP3" and content is None:
        raise AudioProblem("unsupported audio format: mp3 with a free bit rate. Convert the file to wav or flac.")
    if part.frames >= _UNKNOWN_FRAMES:
        raise AudioProblem("the header does not store the length. Write the file again, and not to a pipe.")
    if part.frames == 0:
        raise AudioProblem("zero-length audio. Record it again.")
    if not MIN_RATE <= part.rate <= MAX_RATE:
        raise AudioProblem(f"sample rate of {part.rate} Hz, not {MIN_RATE} to {MAX_RATE} Hz. Convert the file.")
    return part


def _decode(name: str, handle: BinaryIO, part: _Part) -> npt.NDArray[np.float32]:
    """Return all samples [frames, channels]. An AudioProblem says why this is not possible."""
    if part.format == "FLAC":
        handle.seek(0)
        check_single_flac(handle.read())
    try:
        with _open(name, handle, part.content) as sound:
            wave = sound.read(part.frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioProblem(f"truncated or corrupt audio ({_reason(error)}). Copy the file again.") from error
    except MemoryError as error:
        raise AudioProblem(f"too long for the memory: {part.frames} samples. Split the file.") from error
    if len(wave) < part.frames:
        raise AudioProblem(f"truncated audio: {len(wave)} of {part.frames} samples. Copy the file again.")
    if not np.isfinite(wave).all():
        raise AudioProblem("NaN or infinite samples. Write the file again.")
    return wave


def _has_signal(handle: BinaryIO, part: _Part) -> bool:
    """Return whether integer samples differ. Most recordings have a signal in the first block."""
    with _open("", handle, part.content) as sound:
        first = None
        for block in sound.blocks(_BLOCK, dtype="int32", always_2d=True):  # 32 bits are full scale
            first = block.flat[0] if first is None else first
            if (abs(block.astype(np.int64) - first) >= SILENCE * 2**31).any():
                return True
    return False


@contextlib.contextmanager
def _open(name: str, handle: BinaryIO, content: bytes | None) -> Iterator[soundfile.SoundFile]:
    """Open a recording with libsndfile, which sees no file name: it would choose some formats by their suffix."""
    handle.seek(0)
    start = (content or handle.read(4))[:4]
    handle.seek(0)
    quiet = contextlib.nullcontext() if start in _NEVER_MP3 else log_stderr(name, MPG123)
    if content is None and isinstance(handle, io.FileIO):
        file: int | BinaryIO = handle.fileno()
    else:
        file = handle if content is None else Content(content)
    with quiet, soundfile.SoundFile(file, closefd=False) as sound:
        yield sound


def _reason(error: Exception) -> str:
    """Return libsndfile's message without the file name, which the caller adds."""
    text = getattr(error, "error_string", None)
    return (text.strip().splitlines() or [""])[0].rstrip(".") if text else first_line(error).rstrip(".")
