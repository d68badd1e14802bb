"""The waveform convolutions of a speech encoder alone. The head fast_vgs holds the transformer that follows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.config import SpeechEncoderConfig
from speechclip.model.encoders.base import SpeechEncoder, SpeechFeatures, attention_frames, weights_fingerprint

_SHORTEST = 400  # samples: one frame
CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))  # kernel and stride of each, in wav2vec 2.0


class FrontEnd(SpeechEncoder):
    """Waveform convolutions on waveforms of a fixed length, as in FaST-VGS (Peng and Harwath 2022).

    A waveform is cut at its end, normalised, and padded with zeros. The frames of the padding are returned too: the
    positional convolution and ResDAVEnet read them. The only state is the output of the convolutions.

    Args:
        convolutions: transformers' feature extractor module.
        width: C, channels of the last convolution.
        normalize: give every waveform zero mean and unit variance.
        train_seconds: fixed length in training.
        eval_seconds: fixed length in evaluation.
        description: see :class:`SpeechEncoder`.
    """

    num_states = 1

    def __init__(
        self, convolutions: Any, width: int, *, normalize: bool, train_seconds: float, eval_seconds: float,
        description: dict[str, str],
    ) -> None:  # fmt: skip
        super().__init__()
        self.convolutions = convolutions.eval().requires_grad_(False)
        self.dim, self.normalize, self.description = width, normalize, description
        self.train_samples, self.eval_samples = round(train_seconds * SAMPLE_RATE), round(eval_seconds * SAMPLE_RATE)
        self._samples = self.eval_samples

    def train(self, mode: bool = True) -> FrontEnd:
        """Stay in eval mode, but use the fixed length of the mode."""
        self._samples = self.train_samples if mode else self.eval_samples
        super().train(False)
        return self

    def unfreeze(self, part: str | int, states: int) -> None:
        """Let the convolutions get gradients. The head selects the part of the transformer."""
        self.convolutions.requires_grad_(True)
        self.trained = True

    def forward(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz waveforms, each [n_i] float: states [B, 1, T, C], with the frames of the padding."""
        return self._encode(waves, self._samples)

    def encode_whole(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode whole waveforms, padded to the longest one."""
        return self._encode(waves, max(_SHORTEST, *(len(wave) for wave in waves)))

    def _encode(self, waves: Sequence[Tensor], samples: int) -> SpeechFeatures:
        """Encode waveforms, cut or padded to a number of samples."""
        weight = next(self.convolutions.parameters())
        batch = torch.zeros(len(waves), samples, device=weight.device, dtype=torch.float32)
        for row, wave in zip(batch, waves):
            cut = wave[:samples].to(weight.device, torch.float32)
            row[: len(cut)] = unit_variance(cut) if self.normalize else cut
        lengths = torch.tensor([min(len(wave), samples) for wave in waves], device=weight.device)
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            features = self.convolutions(batch.to(weight.dtype)).transpose(1, 2)  # [B, T, C]
        frames = attention_frames(lengths, samples, features.shape[1]).sum(dim=1).clamp(min=1)
        return SpeechFeatures(features[:, None], frames)


def unit_variance(wave: Tensor) -> Tensor:
    """Return a waveform with zero mean and unit variance. Silence becomes zeros."""
    centred = wave - wave.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 0 else centred


def fixed_frames(seconds: float) -> int:
    """Return the number of frames of wav2vec 2.0's convolutions for a fixed length in seconds."""
    samples = round(seconds * SAMPLE_RATE)
    for kernel, stride in CONVOLUTIONS:
        samples = (samples - kernel) // stride + 1
    return max(1, samples)


def front_end_of(model: Any, config: SpeechEncoderConfig, *, path: str, kind: str, normalize: bool) -> FrontEnd:
    """Return the front end of a transformers model.

    Raises:
        UserError: its convolutions are not those of wav2vec 2.0.
    """
    if tuple(zip(model.config.conv_kernel, model.config.conv_stride)) != CONVOLUTIONS:
        raise UserError(
            f"{path}: its convolutions are not those of wav2vec 2.0, which fast_vgs needs. Use another model."
        )
    convolutions = model.feature_extractor
    description = {
        "path": path, "kind": kind, "part": "convolutions", "weights": weights_fingerprint(convolutions),
        "normalize": str(normalize).lower(),
    }  # fmt: skip
    return FrontEnd(
        convolutions, int(model.config.conv_dim[-1]), normalize=normalize, train_seconds=config.train_seconds,
        eval_seconds=config.eval_seconds, description=description,
    )  # fmt: skip
