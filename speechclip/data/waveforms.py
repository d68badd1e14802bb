"""Recordings in memory or in files as 16 kHz waveforms."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError, first_line
from speechclip.data.audio import MAX_RATE, MIN_RATE, load_audio, resample

Wave = np.ndarray | Tensor | str | os.PathLike[str] | bytes | BinaryIO | Mapping[str, Any]

LOUDEST = 256.0  # full scale is 1; larger floating-point samples are integers that were not scaled

_CHANNELS = 8  # an array with at most so many columns holds samples x channels, and not utterances
_SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Mapping)
_INPUTS = "Give a path, the bytes of a file, an array [n] or a dictionary with array and sampling_rate."


def as_wave(item: Any, name: str = "waves", sampling_rate: int | None = None) -> Tensor:
    """Return a recording as [n] float32 at 16 kHz.

    Args:
        item: a path, the bytes of an audio file, an open file, or an array or tensor [n] or [1, n]. Integers are int16
            and become [-1, 1). Or what ``datasets`` returns: a dictionary with ``array`` and ``sampling_rate``, with
            ``bytes`` or with ``path``, or an audio decoder.
        name: the argument in error messages.
        sampling_rate: rate in Hz of a plain array, None for 16 kHz. Files and dictionaries have their own rate.

    Raises:
        UserError: the file cannot be read.
        UserError: the type, the shape, the rate or the scale is wrong.
        UserError: the waveform is empty, or has NaN or infinite samples.
    """
    if hasattr(item, "get_all_samples"):  # the decoder of torchcodec, which datasets returns
        samples = item.get_all_samples()
        item = {"array": samples.data.mean(dim=0), "sampling_rate": samples.sample_rate}
    if isinstance(item, Mapping):
        if item.get("array") is None:
            return _from_file(item, name)
        if "sampling_rate" not in item:
            raise UserError(f"{name}: a dictionary with array but without sampling_rate. {_INPUTS}")
        item, sampling_rate = item["array"], item["sampling_rate"]
        if isinstance(item, list):  # the samples, if datasets returns no arrays
            item = _as_array(item, name)
    elif isinstance(item, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(item, "read"):
        return _from_file(item, name)
    if not isinstance(item, (np.ndarray, Tensor)):
        raise UserError(f"{name}: {type(item).__name__} is not a recording. {_INPUTS}")
    return _from_samples(item, name, check_rate(sampling_rate))


def check_rate(sampling_rate: Any) -> int:
    """Return a sampling rate in Hz, 16 kHz for None.

    Raises:
        UserError: it is not an integer, or not the rate of a recording.
    """
    if sampling_rate is None:
        return SAMPLE_RATE
    whole = isinstance(sampling_rate, (int, np.integer)) and not isinstance(sampling_rate, bool)
    if not whole or not MIN_RATE <= sampling_rate <= MAX_RATE:
        raise UserError(
            f"sampling_rate: {sampling_rate!r} is not a rate in Hz. Give an integer from {MIN_RATE} to {MAX_RATE}."
        )
    return int(sampling_rate)


def list_waves(waves: Any, name: str = "waves") -> list[Any]:
    """Return the recordings of an argument that holds one or several: an array or tensor [N, n] holds N utterances.

    Args:
        waves: one recording, or a sequence or other iterable of recordings.
        name: the argument in error messages.

    Raises:
        UserError: it is empty, or an array of samples x channels.
    """
    if isinstance(waves, (np.ndarray, Tensor)):
        shape = tuple(waves.shape)
        if len(shape) == 1 and getattr(waves.dtype, "kind", "f") not in "OUS":  # not recordings or paths
            return [waves]
        if len(shape) == 2 and shape[0] and shape[1] <= _CHANNELS:
            raise UserError(
                f"{name}: shape {shape} is samples x channels. Average the channels to [n]. Utterances are [N, n]."
            )
        if len(shape) not in (1, 2):
            raise UserError(f"{name}: shape {shape}. Give one utterance [n] or utterances [N, n].")
    elif isinstance(waves, _SINGLE) or hasattr(waves, "read") or hasattr(waves, "get_all_samples"):
        return [waves]
    elif not isinstance(waves, Iterable):
        raise UserError(f"{name}: {type(waves).__name__} is not a recording. {_INPUTS}")
    items = list(waves)
    if not items:
        raise UserError(f"{name}: empty. Give at least one recording.")
    if isinstance(items[0], (int, float)):
        raise UserError(f"{name}: a list of numbers. Give the samples as an array [n].")
    return items


def _from_file(item: Any, name: str) -> Tensor:
    """Decode a path, bytes, an open file, or a dictionary with bytes or a path."""
    if isinstance(item, Mapping):
        if item.get("bytes") is None and item.get("path") is None:
            raise UserError(f"{name}: a dictionary without array, bytes and path. {_INPUTS}")
        name = str(item.get("path") or name)
        item = item["path"] if item.get("bytes") is None else item["bytes"]
    if hasattr(item, "read"):
        name = str(getattr(item, "name", name))
        item = item.read()
        if isinstance(item, str):
            raise UserError(f"{name}: a file in text mode. Open it with mode 'rb'.")
    if isinstance(item, (str, os.PathLike)):
        return torch.from_numpy(load_audio(os.fspath(item)))
    if not isinstance(item, (bytes, bytearray, memoryview)):
        raise UserError(f"{name}: {type(item).__name__} is not a file. {_INPUTS}")
    return torch.from_numpy(load_audio(bytes(item), name))


def _as_array(samples: list[Any], name: str) -> np.ndarray:
    try:
        return np.asarray(samples, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: not a list of samples ({first_line(error)}). {_INPUTS}") from error


def _from_samples(item: np.ndarray | Tensor, name: str, rate: int) -> Tensor:
    try:
        native = item if isinstance(item, Tensor) else np.ascontiguousarray(item, item.dtype.newbyteorder("="))
        wave = torch.as_tensor(native)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: an array of {item.dtype}. Give int16 or floating point.") from error
    if wave.ndim == 2 and wave.shape[0] == 1:
        wave = wave[0]
    if wave.ndim != 1 or not len(wave):
        raise UserError(f"{name}: shape {tuple(wave.shape)}. Give a non-empty 1-D array of mono samples.")
    if wave.dtype == torch.int16:
        wave = wave.float() / 2**15
    elif not wave.is_floating_point():
        raise UserError(f"{name}: samples of {wave.dtype} have no known scale. Give int16 or floating point.")
    if not torch.isfinite(wave).all():
        raise UserError(f"{name}: NaN or infinite samples. Record it again.")
    if (loudest := float(wave.detach().abs().max())) > LOUDEST:
        raise UserError(
            f"{name}: a floating-point waveform reaches {loudest:.0f}; full scale is 1. "
            "Divide 16-bit samples by 32768, or pass them as int16."
        )
    if rate == SAMPLE_RATE:
        return wave.float()
    resampled = resample(wave.detach().cpu().float().numpy(), rate)
    if not len(resampled):
        raise UserError(f"{name}: no samples at 16 kHz. Give a longer recording.")
    return torch.from_numpy(np.ascontiguousarray(resampled, dtype=np.float32))
