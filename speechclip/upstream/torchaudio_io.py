"""Functions that torchaudio had until 2.8 and that s3prl calls: ``info``, sox effects, and files without torchcodec.

Only missing functions are added, and only in the current process. soundfile reads and writes files; soxr and tensor
operations replace sox. Effects that s3prl's SUPERB tasks do not use are refused.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechclip.common.errors import UserError

Effects = Sequence[Sequence[str]]
WINDOW_SECONDS = 0.02  # the effect `silence` computes the root mean square over this window, as sox does


@dataclass(frozen=True)
class AudioMetaData:
    """Metadata of a file, with torchaudio's names.

    Attributes:
        sample_rate: in Hz.
        num_frames: samples of each channel.
        num_channels: number of channels.
        bits_per_sample: bits of a sample; 0 if unknown.
        encoding: soundfile's name of the codec.
    """

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int
    encoding: str


def provide() -> None:
    """Add the functions that this torchaudio lacks. A second call does nothing."""
    import torchaudio

    module: Any = torchaudio
    if not hasattr(module, "info"):
        module.info = info
    if importlib.util.find_spec("torchcodec") is None and hasattr(torchaudio, "load_with_torchcodec"):
        module.load, module.save = load, save
    if not hasattr(module, "sox_effects") and importlib.util.find_spec("torchaudio.sox_effects") is None:
        effects: Any = types.ModuleType("torchaudio.sox_effects")
        effects.apply_effects_tensor = apply_effects_tensor
        effects.apply_effects_file = apply_effects_file
        sys.modules["torchaudio.sox_effects"] = effects
        module.sox_effects = effects


def _sound(path: str | Path) -> Any:
    import soundfile

    if not Path(path).is_file():
        raise UserError(f"{path}: no such audio file. Check the path.")
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: not readable as audio ({error}). Convert it to wav or flac.") from error


def info(path: str | Path) -> AudioMetaData:
    """Read the metadata of an audio file."""
    with _sound(path) as sound:
        bits = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 64, "PCM_S8": 8, "PCM_U8": 8}
        return AudioMetaData(sound.samplerate, sound.frames, sound.channels, bits.get(sound.subtype, 0), sound.subtype)


def load(
    path: str | Path, frame_offset: int = 0, num_frames: int = -1, normalize: bool = True, channels_first: bool = True
) -> tuple[Tensor, int]:
    """Read an audio file.

    Args:
        path: the file.
        frame_offset: first sample.
        num_frames: number of samples; -1 for all.
        normalize: return float32 with full scale 1, else int16.
        channels_first: return [channels, n], else [n, channels].

    Returns:
        The samples, and the sample rate in Hz.

    Raises:
        UserError: the file is missing or is not audio.
    """
    with _sound(path) as sound:
        sound.seek(frame_offset)
        samples = sound.read(num_frames, dtype="float32" if normalize else "int16", always_2d=True)
        rate = sound.samplerate
    tensor = torch.from_numpy(np.ascontiguousarray(samples.T if channels_first else samples))
    return tensor, rate


def save(path: str | Path, src: Tensor, sample_rate: int, channels_first: bool = True, **options: Any) -> None:
    """Write samples [channels, n] (or [n, channels]) in the format of the file name's extension."""
    import soundfile

    samples = src.detach().cpu().numpy()
    soundfile.write(path, samples.T if channels_first and samples.ndim == 2 else samples, sample_rate)


def apply_effects_file(path: str | Path, effects: Effects, **options: Any) -> tuple[Tensor, int]:
    """Read a file and apply :func:`apply_effects_tensor`."""
    return apply_effects_tensor(*load(path), effects)


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: Effects, channels_first: bool = True
) -> tuple[Tensor, int]:
    """Apply sox's effects ``channels 1``, ``rate``, ``gain``, ``norm`` and ``silence 1 S L -1 S L`` in the given order.

    Args:
        tensor: [channels, n] float, or [n, channels].
        sample_rate: in Hz.
        effects: each a name and its arguments, as strings.
        channels_first: whether ``tensor`` is [channels, n].

    Returns:
        The samples in the same layout, and their rate in Hz.

    Raises:
        UserError: another effect or argument.
    """
    wave, rate = (tensor if channels_first else tensor.T), sample_rate
    for name, *arguments in effects:
        if (name, arguments) == ("channels", ["1"]):
            wave = wave.mean(dim=0, keepdim=True)
        elif name == "rate" and len(arguments) == 1:
            wave, rate = _resample(wave, rate, round(float(arguments[0]))), round(float(arguments[0]))
        elif name == "gain" and len(arguments) == 1:
            wave = (wave * 10 ** (float(arguments[0]) / 20)).clamp(-1, 1)
        elif name == "norm" and not arguments:
            wave = wave / wave.abs().max().clamp(min=1e-9)
        elif name == "silence" and len(arguments) == 6 and arguments == ["1", *arguments[1:3], "-1", *arguments[1:3]]:
            wave = _without_silence(wave, rate, float(arguments[1]), float(arguments[2].removesuffix("%")) / 100)
        else:
            raise UserError(f"sox effect {' '.join([name, *arguments])!r}: is not supported. Remove it.")
    return (wave if channels_first else wave.T), rate


def _resample(wave: Tensor, rate: int, wanted: int) -> Tensor:
    import soxr

    if rate == wanted:
        return wave
    return torch.from_numpy(soxr.resample(wave.T.numpy(), rate, wanted, quality="HQ").T.copy())


def _without_silence(wave: Tensor, rate: int, seconds: float, level: float) -> Tensor:
    """Cut every part of ``seconds`` or more that stays below ``level`` (full scale is 1).

    After such a part, sound resumes with the first ``seconds`` above the level. Shorter bursts are cut, too.
    """
    above = _root_mean_square(wave.numpy(), round(WINDOW_SECONDS * rate)) > level
    borders = [0, *(np.flatnonzero(np.diff(above)) + 1).tolist(), len(above)]
    kept = np.zeros(len(above), dtype=bool)
    copying = False
    for start, end in zip(borders, borders[1:]):
        if end - start >= seconds * rate:
            copying = bool(above[start])
        kept[start:end] = copying
    return wave[:, torch.from_numpy(kept)]


def _root_mean_square(wave: np.ndarray, window: int) -> np.ndarray:
    """Return the root mean square of the loudest channel over the window that ends at each sample, [n].

    Samples before the first one count as zeros.
    """
    squares = np.cumsum(np.pad(wave.astype(np.float64) ** 2, ((0, 0), (window, 0))), axis=1)
    mean = (squares[:, window:] - squares[:, :-window]) / window
    loudest: np.ndarray = np.sqrt(np.maximum(mean, 0)).max(axis=0)
    return loudest
