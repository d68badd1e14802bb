"""Any upstream of s3prl as a frozen speech encoder: ``s3prl:NAME`` or ``s3prl:NAME:CHECKPOINT``.

Two things differ from the other encoders. s3prl applies the final LayerNorm to the last state of a pre-norm model
(HuBERT Large). If an upstream has a multiple of 50 frames per second, frames are dropped. For example, fbank has 100,
so every second frame is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechclip.common.compat import prepare
from speechclip.common.constants import HOP, SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.config import SpeechEncoderConfig
from speechclip.model.encoders.base import (
    SpeechEncoder,
    SpeechFeatures,
    frame_counts,
    register_encoder,
    weights_fingerprint,
)

PREFIX = "s3prl:"
MIN_SAMPLES = SAMPLE_RATE // 20  # s3prl itself pads shorter batches to 50 ms


class S3prlEncoder(SpeechEncoder):
    """An s3prl upstream behind this project's interface.

    Args:
        upstream: the module that an entry of s3prl's hub built.
        description: see :class:`SpeechEncoder`.

    Raises:
        UserError: the hidden states differ in size or stride, or their stride does not divide 320 samples.
    """

    def __init__(self, upstream: Any, *, description: dict[str, str]) -> None:
        super().__init__()
        self.upstream = upstream.eval().requires_grad_(False)
        self.description = description
        rate = upstream.get_downsample_rates("hidden_states")
        if rate < 1 or HOP % rate:
            raise UserError(
                f"{description['path']}: has a frame every {rate} samples, which does not divide {HOP} (50 Hz)."
                " Use an upstream that fits."
            )
        self.every = HOP // rate  # one of this many frames is kept
        wave = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 0.1
        states = self._states([wave.to(self._placement()[0])])
        self.num_states, self.dim = states.shape[1], states.shape[3]

    @torch.no_grad()
    def forward(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz waveforms, each [n_i] float."""
        device, precision = self._placement()
        rows = [wave.to(device, precision) for wave in waves]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        if self.every > 1:  # filter banks process each waveform alone and need 25 ms
            rows = [_lengthened(row) for row in rows]
        elif int(lengths.max()) < MIN_SAMPLES:
            rows[0] = _lengthened(rows[0])
        states = self._states(rows)
        return SpeechFeatures(states, frame_counts(lengths, states.shape[2]).clamp(min=1))

    def _placement(self) -> tuple[torch.device, torch.dtype]:
        """Return device and precision of the upstream. Filter banks have no parameters and use the defaults."""
        parameter = next(self.upstream.parameters(), torch.empty(0))
        return parameter.device, parameter.dtype

    @torch.no_grad()
    def _states(self, rows: list[Tensor]) -> Tensor:
        """Return all hidden states of a batch, [B, L, T, D], with one frame per 320 samples, the first at 0."""
        states = self.upstream(rows)["hidden_states"]
        if len({state.shape for state in states}) != 1:
            shapes = ", ".join(str(list(state.shape)) for state in states)
            raise UserError(
                f"{self.description['path']}: hidden states of different shapes cannot be mixed: {shapes}."
                " Choose layers of one shape with model.speech_encoder.layers."
            )
        return torch.stack([state[:, :: self.every] for state in states], dim=1)


def _lengthened(wave: Tensor) -> Tensor:
    """Pad a waveform [n] to the shortest length that upstreams accept."""
    return nn.functional.pad(wave, (0, max(0, MIN_SAMPLES - len(wave))))


@register_encoder("s3prl")
def load_s3prl_encoder(config: SpeechEncoderConfig) -> S3prlEncoder:
    """Build the upstream that ``config.path`` names.

    Raises:
        UserError: s3prl is not installed, has no such upstream, or cannot load it.
    """
    name, _, checkpoint = config.path.removeprefix(PREFIX).partition(":")
    prepare()
    try:
        from s3prl import hub
    except ModuleNotFoundError as error:
        raise UserError(
            f'{config.path}: {error.name} is not installed: tools/install.sh --extras "s3prl" adds it'
        ) from error
    check_upstream(name, config.path, hub.options())
    if config.normalize is not None:
        raise UserError("model.speech_encoder.normalize: s3prl's upstreams decide themselves; leave it null")
    if checkpoint and "://" not in checkpoint and not Path(checkpoint).exists():
        raise UserError(f"{checkpoint}: no such checkpoint for s3prl's {name}. Check the path.")
    try:
        with _plain_loading():
            upstream = getattr(hub, name)(**({"ckpt": checkpoint} if checkpoint else {}))
    except UserError:
        raise
    except Exception as error:  # readers, downloads and packages of upstreams raise many classes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{config.path}: s3prl cannot load it: {reason}") from error
    description = {"path": config.path, "kind": f"s3prl {name}", "weights": _identity(upstream, name)}
    return S3prlEncoder(upstream, description=description)


def _identity(upstream: nn.Module, name: str) -> str:
    """Return the fingerprint of the weights, equal in every process; the name if it has no weights."""
    for key, buffer in upstream.named_buffers():
        if key.endswith("_pseudo_wavs"):  # random values; s3prl uses only their shape
            buffer.zero_()
    return weights_fingerprint(upstream) if upstream.state_dict() else name


def check_upstream(name: str, source: str, known: Sequence[str]) -> None:
    """Check that s3prl's hub has an upstream.

    Args:
        name: the upstream.
        source: the option or setting that holds the name, for the error.
        known: the names in the hub.

    Raises:
        UserError: the hub does not have it. The error suggests the nearest name.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else " (S3PRLUpstream.available_names() lists them)"
        raise UserError(f"{source}: s3prl has no upstream {name!r}{hint}")


@contextlib.contextmanager
def _plain_loading() -> Iterator[None]:
    """Make ``torch.load`` refuse pickled code: a checkpoint's configuration may name any file."""
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
