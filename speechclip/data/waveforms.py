"""Waveforms that a caller passes in memory or as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.data.audio import load_audio

Wave = np.ndarray | Tensor | str | Path


def as_wave(item: Wave) -> Tensor:
    """Return a file, array or tensor as [n] float at 16 kHz; int16 is scaled to [-1, 1)."""
    if isinstance(item, (str, Path)):
        return torch.from_numpy(load_audio(item))
    wave = torch.as_tensor(item)
    if wave.ndim != 1 or not len(wave):
        raise UserError(
            f"a waveform is a non-empty 1-D array of {SAMPLE_RATE} Hz samples, not of shape {tuple(wave.shape)}"
        )
    if wave.dtype == torch.int16:
        return wave.float() / 2**15
    if not wave.is_floating_point():
        raise UserError(
            f"a waveform of {wave.dtype}; int16 or floating point is needed, because the scale of others is unknown"
        )
    if not torch.isfinite(wave).all():
        raise UserError("a waveform holds NaN or infinite samples")
    return wave.float()
