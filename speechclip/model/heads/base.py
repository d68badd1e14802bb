"""The interface of a head, its outputs, and the registry of heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

from speechclip.config import HeadConfig

PARALLEL, CASCADED = "parallel", "cascaded"  # the branches


class Keywords(NamedTuple):
    """Keywords of a batch, at most K per utterance. Entries where ``mask`` is False have no meaning.

    Attributes:
        vectors: [B, K, D], the keywords before quantisation (z_k).
        quantized: [B, K, D], in the forward pass rows of the subword embeddings.
        rows: [B, K] int64, the indices of these rows.
        attention: [B, K, T], weights over the frames; None in training.
        mask: [B, K] bool, True for the first n_i keywords of utterance i.
        segments: [B, K, 2], start and end in frames, if the head cuts the utterance into segments; else None, and the
            time of a keyword follows from its attention.
        probabilities: [B, K, V], the quantiser's softmax over the vocabulary, in training; None in evaluation.
    """

    vectors: Tensor
    quantized: Tensor
    rows: Tensor
    attention: Tensor | None
    mask: Tensor
    segments: Tensor | None = None
    probabilities: Tensor | None = None


class HeadOutput(NamedTuple):
    """The output of a head.

    Attributes:
        embedding: [B, joint width], the parallel branch, not normalised; or None.
        keywords: the input of CLIP's text transformer (cascaded branch); or None.
        quantity_loss: scalar, difference between the number of keywords and its target; None if the number is fixed.
        attention: [B, 1, T], weights of the [CLS] over the frames for a head without keywords; None in training.
        sequence: [B, S, d], [CLS] and frames for cross-modal layers (fast_vgs); else None.
        valid: [B, S] bool, True at the positions of ``sequence`` that count.
        parts: the embeddings that ``embedding`` is the mean of, with a loss each; None if it has the loss itself.
    """

    embedding: Tensor | None
    keywords: Keywords | None
    quantity_loss: Tensor | None = None
    attention: Tensor | None = None
    sequence: Tensor | None = None
    valid: Tensor | None = None
    parts: tuple[Tensor, ...] | None = None


class SpeechOutput(NamedTuple):
    """The output of the network for a batch.

    Attributes:
        branches: embeddings [B, J] by branch, not normalised. "parallel" comes before "cascaded".
        keywords, quantity_loss, attention: see :class:`HeadOutput`.
        frames: [B] int64, valid frames of each utterance.
        sequence, valid, parts: see :class:`HeadOutput`.
        mixed: [B, T, d], the input of the head, in training; None in evaluation.
    """

    branches: dict[str, Tensor]
    keywords: Keywords | None
    quantity_loss: Tensor | None
    attention: Tensor | None
    frames: Tensor
    sequence: Tensor | None = None
    valid: Tensor | None = None
    mixed: Tensor | None = None
    parts: tuple[Tensor, ...] | None = None

    @property
    def embedding(self) -> Tensor:
        """The embedding of the first branch, which retrieval uses."""
        return next(iter(self.branches.values()))


class Head(nn.Module, ABC):
    """A trained head over the weighted sum of hidden states.

    Attributes:
        branches: the branches that the head feeds, PARALLEL before CASCADED.
    """

    branches: ClassVar[tuple[str, ...]]

    @property
    def has_keywords(self) -> bool:
        """True if the head needs CLIP's text transformer and a vocabulary."""
        return CASCADED in self.branches

    @abstractmethod
    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Apply the head.

        Args:
            frames: [B, T, d].
            padding: [B, T] bool, True at frames that are padding.
        """

    @abstractmethod
    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the output of the head's own layer at the frames, without the [CLS] positions: [B, T, d]."""

    def upstream_states(self, states: Tensor, frames: Tensor, padding: Tensor) -> list[Tensor]:
        """Return the hidden states of the s3prl upstream, each [B, T, d].

        Args:
            states: [B, L, T, D], of the speech encoder.
            frames: [B, T, d], their weighted sum.
            padding: [B, T] bool.
        """
        return [*states.unbind(dim=1), self.frame_states(frames, padding)]

    def start_from(self, model: Any, source: str) -> None:
        """Copy weights of the speech encoder before training. Most heads start from random weights.

        Args:
            model: the encoder's transformers model.
            source: its path, for errors.
        """

    def train_encoder(self, part: str | int) -> list[str] | None:
        """Select the trained part of a speech transformer that the head holds itself. Most heads hold none.

        Args:
            part: the value of ``train.encoder``, see :class:`speechclip.config.TrainConfig`.

        Returns:
            The names of its trained parameters; None if the head holds no such transformer.

        Raises:
            UserError: the transformer has fewer layers.
        """
        return None

    def set_step(self, step: int) -> None:
        """Announce the training step that comes next, counted from 0. Most heads do not depend on it."""


@dataclass(frozen=True)
class HeadInputs:
    """Widths and tensors that a head is built with.

    Attributes:
        dim: d, width of the speech features.
        joint_dim: J, width of the CLIP embedding.
        subword_embeddings: [V, D], of the reduced vocabulary; None for a head without keywords.
        valid_mask: [V] bool, False for special tokens; None for a head without keywords.
        max_keywords: number of keywords that fit into the text transformer.
        fixed_seconds: fixed lengths of utterances in training and in evaluation, for a head that needs them.
        part: the part of the speech encoder that the features come from, "all" or "convolutions".
    """

    dim: int
    joint_dim: int
    subword_embeddings: Tensor | None = None
    valid_mask: Tensor | None = None
    max_keywords: int = 75
    fixed_seconds: tuple[float, float] = (8.0, 10.0)
    part: str = "all"

    @property
    def subwords(self) -> tuple[Tensor, Tensor]:
        """The subword embeddings and the mask of the valid ones, for a head with keywords."""
        assert self.subword_embeddings is not None and self.valid_mask is not None
        return self.subword_embeddings, self.valid_mask


Builder = Callable[[HeadConfig, HeadInputs], Head]
BuilderFunction = TypeVar("BuilderFunction", bound=Builder)


class RegisteredHead(NamedTuple):
    """A head in the registry: the function that builds it, and its branches."""

    build: Builder
    branches: tuple[str, ...]


_HEADS: dict[str, RegisteredHead] = {}


def register_head(name: str, *, branches: tuple[str, ...]) -> Callable[[BuilderFunction], BuilderFunction]:
    """Register a function that builds a head from its settings.

    Args:
        name: the value of ``model.head.name``.
        branches: see :class:`Head`.
    """

    def register(build: BuilderFunction) -> BuilderFunction:
        _HEADS[name] = RegisteredHead(build, branches)
        return build

    return register


def registered_heads() -> dict[str, RegisteredHead]:
    """Return the registered heads by name. :mod:`speechclip.model.heads.factory` imports all of them."""
    return dict(_HEADS)
