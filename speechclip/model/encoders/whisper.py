"""The encoder of Whisper as a speech encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechclip.common.constants import FRAME_SECONDS, HOP, SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.config import SpeechEncoderConfig
from speechclip.model.encoders.base import (
    SpeechEncoder,
    SpeechFeatures,
    StateRecorder,
    frame_counts,
    register_encoder,
    top_layers,
    weights_fingerprint,
)
from speechclip.model.encoders.kernels.linear import freeze_linears
from speechclip.model.encoders.transformers import load_from_transformers


class WhisperSpeechEncoder(SpeechEncoder):
    """Log-mel windows in, hidden states at 50 Hz out, cut to the utterance's own frames.

    Args:
        model: transformers' ``WhisperEncoder``.
        extractor: its ``WhisperFeatureExtractor``.
        window_seconds: the audio is padded to this length. Whisper was trained with 30 s. A shorter window costs less
            and changes the states, because attention sees less silence. Longer audio is encoded window by window.
        description: see :class:`SpeechEncoder`.

    Raises:
        UserError: a window that is too short, too long, or not a whole number of frames.
    """

    def __init__(self, model: Any, extractor: Any, *, window_seconds: float, description: dict[str, str]) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.extractor = extractor
        self.description = description
        self.dim = int(model.config.d_model)
        self.num_states = int(model.config.encoder_layers) + 1
        self.window = round(window_seconds * SAMPLE_RATE)
        longest = model.config.max_source_positions * HOP
        if not HOP <= self.window <= longest or self.window % HOP:
            raise UserError(
                f"model.speech_encoder.window_seconds: {window_seconds} is not between "
                f"{FRAME_SECONDS} and {longest / SAMPLE_RATE}, in steps of {FRAME_SECONDS}."
                " Change the value."
            )
        freeze_linears(self.model)
        self._recorder = StateRecorder(model.layers)

    def unfreeze(self, part: str | int, states: int) -> None:
        """Let a part of the encoder get gradients. The convolutions are the two over the mel spectrogram."""
        parts = top_layers(self.model.layers, part, states)
        if part == "all":
            parts += [self.model.conv1, self.model.conv2]
        for module in parts:
            module.requires_grad_(True)
        self.trained = True

    def forward(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz waveforms, each [n_i] float."""
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return self._encode(waves)

    def _encode(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        windows, owner = [], []
        for index, wave in enumerate(waves):
            for start in range(0, max(len(wave), 1), self.window):
                windows.append(wave[start : start + self.window].cpu().float().numpy())
                owner.append(index)
        states = self._encode_windows(windows)  # [W, L, T, D]
        rows = [
            torch.cat([s for s, o in zip(states, owner) if o == i], dim=1) for i in range(len(waves))
        ]  # [L, T_i, D]
        lengths = torch.tensor([len(wave) for wave in waves], device=states.device)
        frames = frame_counts(lengths, max(row.shape[1] for row in rows)).clamp(min=1)
        longest = int(frames.max())
        out = states.new_zeros(len(rows), self.num_states, longest, self.dim)
        for i, row in enumerate(rows):
            kept = min(int(frames[i]), row.shape[1])
            out[i, :, :kept] = row[:, :kept]
        return SpeechFeatures(out, frames)

    def _encode_windows(self, windows: list[Any]) -> Tensor:
        parameter = self.model.conv1.weight  # DataParallel's replicas list no parameters
        mel = self.extractor(
            windows, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding="max_length", max_length=self.window,
            truncation=False,
        ).input_features.to(parameter.device, parameter.dtype)  # fmt: skip
        x = nn.functional.gelu(self.model.conv1(mel))
        x = nn.functional.gelu(self.model.conv2(x)).transpose(1, 2)  # [W, T, D]
        x = x + self.model.embed_positions.weight[: x.shape[1]]
        for layer in self.model.layers:
            x = layer(x, None, layer_head_mask=None)[0]
        return self._recorder.take()


@register_encoder("whisper")
def load_whisper_encoder(config: SpeechEncoderConfig) -> WhisperSpeechEncoder:
    """Load the encoder of a Whisper in transformers' format.

    Raises:
        UserError: the files cannot be read.
    """
    model, extractor, kind = load_from_transformers(
        config.path, lambda module, path: module.WhisperModel.from_pretrained(path).get_encoder()
    )
    description = {
        "path": config.path, "kind": kind, "weights": weights_fingerprint(model),
        "window_seconds": str(config.window_seconds),
    }  # fmt: skip
    return WhisperSpeechEncoder(model, extractor, window_seconds=config.window_seconds, description=description)
