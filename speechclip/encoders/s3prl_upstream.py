"""Any upstream of s3prl as a frozen speech encoder: ``s3prl:NAME`` or ``s3prl:NAME:CHECKPOINT``.

Its layers and frames are treated as the core's own are. One thing differs by design of s3prl: the last state of a
pre-norm model (HuBERT Large) has the encoder's final LayerNorm applied there, all others are equal.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechclip.config import SpeechEncoderConfig
from speechclip.constants import HOP, SAMPLE_RATE
from speechclip.encoders.speech import SpeechFeatures, frame_counts, weights_fingerprint
from speechclip.errors import UserError

PREFIX = "s3prl:"
MIN_SAMPLES = SAMPLE_RATE // 20  # s3prl itself pads shorter batches to 50 ms


class S3prlEncoder(nn.Module):
    """An s3prl upstream behind this project's interface.

    Args:
        upstream: what an entry of s3prl's hub built.
        description: what identifies the encoder, for feature stores and checkpoints.

    Raises:
        UserError: its hidden states differ in size or stride, or come at another rate than 50 a second.
    """

    def __init__(self, upstream: Any, *, description: dict[str, str]) -> None:
        super().__init__()
        self.upstream = upstream.eval().requires_grad_(False)
        self.description = description
        rate = upstream.get_downsample_rates("hidden_states")
        if rate != HOP:
            raise UserError(f"{description['path']}: a frame every {rate} samples, expected {HOP} (50 Hz)")
        wave = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 0.1
        states = self._states([wave.to(self._placement()[0])])
        self.num_states, self.dim = states.shape[1], states.shape[3]

    def train(self, mode: bool = True) -> S3prlEncoder:
        """Stay in eval mode: frozen means no dropout and no layer drop either."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz waveforms, each [n_i] float."""
        device, precision = self._placement()
        rows = [wave.to(device, precision) for wave in waves]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        if int(lengths.max()) < MIN_SAMPLES:
            rows[0] = nn.functional.pad(rows[0], (0, MIN_SAMPLES - len(rows[0])))
        states = self._states(rows)
        return SpeechFeatures(states, frame_counts(lengths, states.shape[2]).clamp(min=1))

    def _placement(self) -> tuple[torch.device, torch.dtype]:
        """Where the upstream computes, and how precisely; filter banks have no parameters."""
        parameter = next(self.upstream.parameters(), torch.empty(0))
        return parameter.device, parameter.dtype

    @torch.no_grad()
    def _states(self, rows: list[Tensor]) -> Tensor:
        """All hidden states of a batch, [B, L, T, D]."""
        states = self.upstream(rows)["hidden_states"]
        if len({state.shape for state in states}) != 1:
            shapes = ", ".join(str(list(state.shape)) for state in states)
            raise UserError(f"{self.description['path']}: hidden states of different shapes cannot be mixed: {shapes}")
        return torch.stack(list(states), dim=1)


def load_s3prl_encoder(config: SpeechEncoderConfig) -> S3prlEncoder:
    """Build the upstream that ``config.path`` names.

    Raises:
        UserError: s3prl is not installed, has no such upstream, or cannot load it.
    """
    from speechclip.compat import prepare

    name, _, checkpoint = config.path.removeprefix(PREFIX).partition(":")
    prepare()
    try:
        from s3prl import hub
    except ModuleNotFoundError as error:
        raise UserError(
            f'{config.path}: {error.name} is not installed: tools/install.sh --extras "s3prl" adds it'
        ) from error
    if name not in hub.options():
        raise UserError(f"{config.path}: s3prl has no upstream {name!r}{_nearest(name, hub.options())}")
    if config.normalize is not None:
        raise UserError("model.speech_encoder.normalize: s3prl's upstreams decide themselves; leave it null")
    if checkpoint and "://" not in checkpoint and not Path(checkpoint).exists():
        raise UserError(f"{checkpoint}: no such checkpoint for s3prl's {name}")
    try:
        with _plain_loading():
            upstream = getattr(hub, name)(**({"ckpt": checkpoint} if checkpoint else {}))
    except UserError:
        raise
    except Exception as error:  # whatever an upstream's reader, its download or its packages raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{config.path}: s3prl cannot load it: {reason}") from error
    description = {"path": config.path, "kind": f"s3prl {name}", "weights": weights_fingerprint(upstream)}
    return S3prlEncoder(upstream, description=description)


@contextlib.contextmanager
def _plain_loading() -> Iterator[None]:
    """Have ``torch.load`` take values alone: a checkpoint's configuration may name a file that would run code."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else " (S3PRLUpstream.available_names() lists them)"
