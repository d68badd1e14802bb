"""The module that s3prl's hub builds: waveforms in, SpeechCLIP's hidden states out."""

from __future__ import annotations

import dataclasses
import logging
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
from speechclip.model.parametrizations import merge_parametrizations

log = logging.getLogger(__name__)

LOUDEST = 256.0  # full scale is 1; larger values are unscaled integers


class UpstreamExpert(nn.Module):
    """A frozen SpeechCLIP with s3prl's upstream interface.

    The hidden states are the raw states of the speech encoder (index 0 is the input of its first layer), and then the
    head's own layer at the frames (Shih et al. 2022). There are 14 for Base and 26 for Large. Each is [B, T, d], with
    one frame per 320 samples.

    The states of an utterance depend slightly on its batch, because encoders see padding: the group norm of Base models
    uses the padded length, and the last frame of an utterance sees zeros. ``tools/measure/measure_feature_costs.py
    --checkpoint`` measures this, and RESULTS.md has figures. The weighted sum and the head's layer do not depend on the
    batch.

    The module works in train mode, too, but stays frozen: it has no dropout and returns no gradient. It can be copied,
    pickled and randomised.

    Args:
        ckpt: checkpoint folder of this project or a published file.
        model_config: YAML layer over the folder's configuration.
        sample_rate: rate of the waveforms in Hz. Only 16000 is supported.
        head_layer: return the head's layer, too. Without it, this is the speech encoder alone.

    Raises:
        UserError: the checkpoint cannot be loaded, or the sample rate is not 16000 Hz.
    """

    def __init__(
        self, ckpt: str | Path, model_config: str | None = None, *, sample_rate: int = SAMPLE_RATE,
        head_layer: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if sample_rate != SAMPLE_RATE:
            raise UserError(f"speechclip upstream: {sample_rate} Hz audio. Resample it to {SAMPLE_RATE} Hz.")
        self.name = "speechclip"
        self.head_layer = head_layer
        self.model = _load(ckpt, model_config).eval().requires_grad_(False)
        self.model.clip = None  # hidden states do not need CLIP
        merge_parametrizations(self.model)
        _fix_single_values(self.model)
        self._warned = False

    def train(self, mode: bool = True) -> UpstreamExpert:
        """Set the mode of this module, but keep the model in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def get_downsample_rates(self, key: str) -> int:
        """Return the number of samples per frame. It is the same for every key."""
        return HOP

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Encode 16 kHz mono waveforms, each [n_i]: floating point with full scale 1, or int16.

        Returns:
            ``hidden_states``: list of [B, T, d] on the model's device and in its precision. ``hidden_state_0`` and so
            on: the same, one by one. ``last_hidden_state``: the last one.

        Raises:
            UserError: a waveform has another shape, type or scale, or a parameter of the upstream needs a gradient.
        """
        if torch.is_grad_enabled() and self.training:
            self._check_frozen()
        for wave in wavs:
            _check_scale(wave)
        with torch.no_grad():
            states, _ = self.model.hidden_states([as_wave(wave).to(self.model.device) for wave in wavs])
        if not self.head_layer:
            states = states[:-1]
        numbered = {f"hidden_state_{index}": state for index, state in enumerate(states)}
        return {"hidden_states": states, "last_hidden_state": states[-1], **numbered}

    def _check_frozen(self) -> None:
        if any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError("speechclip upstream: it cannot be fine-tuned. Call requires_grad_(False) on it.")
        if not self._warned:
            self._warned = True
            log.warning("speechclip upstream: it is frozen. Only the modules after it are trained.")


def _load(ckpt: str | Path, model_config: str | None) -> SpeechNetwork:
    if Path(ckpt).is_file():  # a published one
        if model_config is not None:
            raise UserError(
                f"{model_config}: a configuration needs a checkpoint folder, but {ckpt} is a file."
                " Convert the file with speechclip convert, or leave the configuration out."
            )
        return load_published_states(ckpt)
    folder, _, origin = read_checkpoint(ckpt)
    config = load([folder / SETTINGS] + ([Path(model_config)] if model_config is not None else []))
    if origin.get("published", {}).get("normalize_waveform"):
        # A converted SpeechCLIP+ Base. The authors' feature extraction for s3prl reads raw waveforms.
        encoder = dataclasses.replace(config.model.speech_encoder, normalize=None)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, speech_encoder=encoder))
    return load_model(folder, with_clip=False, config=config)  # a head with keywords loads its CLIP anyway


def _fix_single_values(model: nn.Module) -> None:
    """Turn parameters with one value (a temperature, a bias) into buffers.

    s3prl's ``randomize`` gives each parameter its own mean and standard deviation. One value has no standard deviation.
    """
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.numel() == 1:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def _check_scale(wave: Tensor) -> None:
    if torch.is_floating_point(wave) and wave.numel() and float(wave.detach().abs().max()) > LOUDEST:
        raise UserError(
            f"a floating-point waveform reaches {float(wave.abs().max()):.0f}, but full scale is 1. Divide 16-bit "
            "samples by 32768, or pass them as int16."
        )
