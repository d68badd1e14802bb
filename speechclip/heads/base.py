"""What every head returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Keywords(NamedTuple):
    """Keywords of a batch.

    vectors: [B, K, D] before quantisation (z_k). quantized: [B, K, D], rows of the subword table in the forward pass.
    rows: [B, K] int64, which rows. attention: [B, K, T], over frames.
    """

    vectors: Tensor
    quantized: Tensor
    rows: Tensor
    attention: Tensor


class HeadOutput(NamedTuple):
    """A head's output: an utterance embedding [B, joint width], or keywords for CLIP's text transformer to read."""

    embedding: Tensor | None
    keywords: Keywords | None


class Head(Protocol):
    """A trained head over mixed speech features. Implementations are ``nn.Module``."""

    def __call__(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """frames [B, T, d], padding [B, T] bool (True where there is no frame)."""
        ...

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """The head's own layer over the frames, [CLS] positions cut: [B, T, d]."""
        ...
