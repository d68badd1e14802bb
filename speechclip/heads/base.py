"""What every head returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

PARALLEL, CASCADED = "parallel", "cascaded"  # read-outs


class Keywords(NamedTuple):
    """Keywords of a batch, at most K an utterance; what stands where ``mask`` is false means nothing.

    vectors: [B, K, D] before quantisation (z_k). quantized: [B, K, D], rows of the subword table in the forward pass.
    rows: [B, K] int64, which rows. attention: [B, K, T], weights over frames, or None in training. mask: [B, K] bool,
    which exist: the first n_i of utterance i. segments: [B, K, 2] start and end in frames, of a head that cuts the
    utterance into keywords; None where all there is to tell the time of a keyword is its attention.
    """

    vectors: Tensor
    quantized: Tensor
    rows: Tensor
    attention: Tensor | None
    mask: Tensor
    segments: Tensor | None = None


class HeadOutput(NamedTuple):
    """A head's output.

    embedding: an utterance embedding [B, joint width] (the parallel read-out), or None. keywords: for CLIP's text
    transformer to read (the cascaded read-out), or None. quantity: by how much the number of keywords is off its
    target, a scalar to be trained down, or None where their number is fixed. attention: of a head without keywords, the
    weights of its [CLS] over the frames, [B, 1, T], or None in training.
    """

    embedding: Tensor | None
    keywords: Keywords | None
    quantity: Tensor | None = None
    attention: Tensor | None = None


class SpeechOutput(NamedTuple):
    """What a model reads out of a batch.

    readouts: embeddings [B, J], not normalised, "parallel" (the head's own) before "cascaded" (of the keywords, by
    CLIP's text transformer); a hybrid head has both. keywords, quantity, attention: see :class:`HeadOutput`.
    """

    readouts: dict[str, Tensor]
    keywords: Keywords | None
    quantity: Tensor | None
    attention: Tensor | None = None

    @property
    def embedding(self) -> Tensor:
        """The first read-out: what retrieval goes by."""
        return next(iter(self.readouts.values()))


class Head(Protocol):
    """A trained head over mixed speech features. Implementations are ``nn.Module``."""

    def __call__(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """frames [B, T, d], padding [B, T] bool (True where there is no frame)."""
        ...

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """The head's own layer over the frames, [CLS] positions cut: [B, T, d]."""
        ...

    def set_step(self, step: int) -> None:
        """Tells the head which training step comes, counted from 0."""
        ...
