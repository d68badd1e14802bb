"""What s3prl's hub builds: waveforms in, SpeechCLIP's hidden states out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechclip.checkpoint.folder import SETTINGS, load_model, read_checkpoint
from speechclip.checkpoint.pretrained import load_published_states
from speechclip.common.constants import HOP, SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.config import load
from speechclip.data.waveforms import as_wave
from speechclip.model.network import SpeechNetwork

LOUDEST = 256.0  # full scale is 1; floats beyond this are integers that nobody scaled


class UpstreamExpert(nn.Module):
    """A frozen SpeechCLIP behind s3prl's upstream interface.

    The hidden states are the speech encoder's, raw (index 0 is the input of its first layer), then the head's own layer
    over the frames (Shih et al. 2022): 14 for Base, 26 for Large, all [B, T, d] with a frame every 320 samples.

    A batch and its utterances one by one do not give quite the same, for what the encoder makes of padding: the group
    norm of Base models takes its statistics over the padded length, and an utterance's last frame reaches into the
    zeros, which the others attend to. ``tools/measure_feature_costs.py --checkpoint`` measures it; RESULTS.md has
    figures. What this class adds, the mix and the head's layer, agrees to rounding.

    Args:
        ckpt: checkpoint folder of this project or a published file.
        model_config: YAML layer over the folder's configuration.
        sample_rate: rate of the waveforms that will come, where the caller knows it; any but 16000 Hz is refused.
        head_layer: give the head's layer too; without it this is the speech encoder alone.

    Raises:
        UserError: a checkpoint that cannot be loaded, or another sample rate.
    """

    def __init__(
        self, ckpt: str | Path, model_config: str | None = None, *, sample_rate: int = SAMPLE_RATE,
        head_layer: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if sample_rate != SAMPLE_RATE:
            raise UserError(f"speechclip upstream: {sample_rate} Hz audio; resample it to {SAMPLE_RATE} Hz first")
        self.name = "speechclip"
        self.head_layer = head_layer
        self.model = _load(ckpt, model_config).eval().requires_grad_(False)
        self.model.clip = None  # hidden states need neither tower

    def train(self, mode: bool = True) -> UpstreamExpert:
        """Keep the model in eval mode: s3prl switches its upstreams to train mode once they are built."""
        super().train(mode)
        self.model.eval()
        return self

    def get_downsample_rates(self, key: str) -> int:
        """Samples a frame, the same for every key."""
        return HOP

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Encode 16 kHz mono waveforms, each [n_i]: floating point with full scale at 1, or int16.

        Returns:
            ``hidden_states``, a list of [B, T, d] on the model's device and in its precision; the same one by one as
            ``hidden_state_0`` and so on; and the last as ``last_hidden_state``.

        Raises:
            UserError: waveforms that cannot be what they should, or an attempt to train through the frozen model.
        """
        if self.training and torch.is_grad_enabled():
            raise UserError(
                "speechclip upstream: it is frozen and gives no gradient: call eval(), and do not ask s3prl to train "
                "it (-f, build_model.upstream_trainable)"
            )
        for wave in wavs:
            _check_scale(wave)
        states, _ = self.model.hidden_states([as_wave(wave).to(self.model.device) for wave in wavs])
        if not self.head_layer:
            states = states[:-1]
        numbered = {f"hidden_state_{index}": state for index, state in enumerate(states)}
        return {"hidden_states": states, "last_hidden_state": states[-1], **numbered}


def _load(ckpt: str | Path, model_config: str | None) -> SpeechNetwork:
    if Path(ckpt).is_file():  # a published one
        if model_config is not None:
            raise UserError(f"{model_config}: a configuration goes with a checkpoint folder; {ckpt} is a file")
        return load_published_states(ckpt)
    folder, _, origin = read_checkpoint(ckpt)
    config = load([folder / SETTINGS] + ([Path(model_config)] if model_config is not None else []))
    if origin.get("published", {}).get("normalize_waveform"):
        # A converted SpeechCLIP+ Base. The authors' feature extraction for s3prl reads raw waveforms.
        encoder = dataclasses.replace(config.model.speech_encoder, normalize=None)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, speech_encoder=encoder))
    return load_model(folder, with_clip=False, config=config)  # a cascaded head brings its CLIP all the same


def _check_scale(wave: Tensor) -> None:
    if torch.is_floating_point(wave) and wave.numel() and float(wave.detach().abs().max()) > LOUDEST:
        raise UserError(
            f"a floating-point waveform reaches {float(wave.abs().max()):.0f}; full scale is 1: divide 16-bit samples "
            "by 32768, or hand them over as int16"
        )
