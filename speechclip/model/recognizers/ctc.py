"""A CTC recogniser over the hidden states of a frozen speech encoder, trained on the captions of a corpus.

CTC: Graves et al. 2006. The states are mixed as in SpeechCLIP, so that recogniser and heads read the same features.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError
from speechclip.data.dataset import Batch
from speechclip.model.dropout import Dropout
from speechclip.model.encoders.base import SpeechEncoder, SpeechFeatures
from speechclip.model.heads.weighted_sum import WeightedSum
from speechclip.model.recognizers.base import Recognizer

BLANK = 0  # the output unit without text; unit i of `units` is output i + 1


@dataclass(frozen=True)
class CtcSettings:
    """The size of a CTC recogniser.

    Attributes:
        units: the output units: "words" of the training captions, or "characters".
        stride: frames of 20 ms per output.
        width: channels of the convolutions.
        layers: residual blocks after the first convolution.
        kernel: outputs that a block sees, odd.
        dropout: probability of dropout of the frames and in the blocks.
    """

    units: Literal["words", "characters"] = "words"
    stride: int = 3
    width: int = 192
    layers: int = 2
    kernel: int = 9
    dropout: float = 0.1


def count_units(captions: Iterable[str], kind: str) -> list[str]:
    """Return the output units of captions, most frequent first. Captions are read in lower case."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(split_units(caption, kind))
    return [unit for unit, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def split_units(caption: str, kind: str) -> list[str]:
    """Return the units of a caption in order: its words, or its characters with single blanks between words."""
    words = caption.lower().split()
    return words if kind == "words" else list(" ".join(words))


class _Block(nn.Module):
    """LayerNorm, depthwise convolution over time, GELU, Linear and dropout, with a residual connection."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.linear = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Apply the block to [B, T, W]. valid: [B, T, 1], 1 for outputs that count."""
        y = self.depthwise((self.norm(x) * valid).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.dropout(self.linear(nn.functional.gelu(y)))
        return mixed


class CtcNetwork(nn.Module):
    """Hidden states to the log-probabilities of blank and units.

    Args:
        states: L, number of hidden states.
        dim: their width.
        units: number of units without blank.
        settings: the size.
    """

    def __init__(self, states: int, dim: int, units: int, settings: CtcSettings) -> None:
        super().__init__()
        self.stride = settings.stride
        self.weighted_sum = WeightedSum(states, state_norm=True)
        self.input_dropout = Dropout(settings.dropout)
        self.convolution = nn.Conv1d(dim, settings.width, 5, stride=settings.stride, padding=2)
        self.blocks = nn.ModuleList(
            _Block(settings.width, settings.kernel, settings.dropout) for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(settings.width)
        self.output = nn.Linear(settings.width, units + 1)

    def forward(self, states: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Score the units.

        Args:
            states: [B, L, T, d].
            frames: [B], valid frames.
        Returns:
            log-probabilities [B, T', units + 1].
            the number of valid outputs, [B].
        """
        mixed = self.input_dropout(self.weighted_sum(states))
        inside = torch.arange(mixed.shape[1], device=frames.device)[None, :] < frames[:, None]
        mixed = mixed * inside[:, :, None]  # padding has no effect on the outputs
        x = nn.functional.gelu(self.convolution(mixed.transpose(1, 2)).transpose(1, 2))
        lengths = torch.div(frames - 1, self.stride, rounding_mode="floor") + 1
        valid = (torch.arange(x.shape[1], device=frames.device)[None, :] < lengths[:, None])[:, :, None].to(x.dtype)
        for block in self.blocks:
            x = block(x, valid)
        return self.output(self.norm(x)).log_softmax(dim=-1), lengths


def best_path(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    """Return the most probable output of every frame, without repetitions and blanks.

    Args:
        log_probs: [B, T, V].
        lengths: [B], valid frames.
    Returns:
        the outputs of each utterance, from 1.
    """
    rows = log_probs.argmax(dim=-1).tolist()
    return [
        [output for output, _ in itertools.groupby(row[:length]) if output != BLANK]
        for row, length in zip(rows, lengths.tolist(), strict=True)
    ]


class CtcRecognizer(Recognizer):
    """A trained :class:`CtcNetwork` with its units, and the speech encoder if waveforms are to be recognised.

    Args:
        name: see :class:`Recognizer`.
        network: the trained network.
        units: the text of each unit.
        kind: "words" or "characters".
        description: see :class:`Recognizer`.
        encoder: the frozen encoder that the network was trained on; None for stored states.
        layers: hidden states of the encoder to use; None for all.
    """

    def __init__(
        self, name: str, network: CtcNetwork, units: Sequence[str], kind: str, description: dict[str, str],
        encoder: SpeechEncoder | None = None, layers: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.description = name, description
        self.network, self.encoder = network.eval(), encoder
        self._units, self._joiner = list(units), " " if kind == "words" else ""
        self.layers = None if layers is None else list(layers)

    @torch.no_grad()
    def transcribe(self, batch: Batch) -> list[str]:
        """Return the transcripts of a batch of stored states or waveforms.

        Raises:
            UserError: the batch holds waveforms and the encoder is not loaded.
        """
        states, frames = self._features(batch)
        paths = best_path(*self.network(states, frames))
        return [" ".join(self._joiner.join(self._units[at - 1] for at in path).split()) for path in paths]

    def _features(self, batch: Batch) -> SpeechFeatures:
        device = self.network.output.weight.device
        if batch.states is not None and batch.frames is not None:
            return SpeechFeatures(batch.states.to(device), batch.frames.to(device))
        if self.encoder is None:
            raise UserError(
                f"{self.name}: recognising waveforms needs the speech encoder, which is not loaded. Load it too."
            )
        assert batch.waves is not None
        features: SpeechFeatures = self.encoder([wave.to(device) for wave in batch.waves])
        if self.layers is None:
            return features
        return SpeechFeatures(features.states[:, self.layers], features.frames)
