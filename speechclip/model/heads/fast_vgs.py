"""The head fast_vgs: speech tower, image tower and cross-modal layers of FaST-VGS (Peng and Harwath, ICASSP 2022).

As published, the speech encoder of this head is the frozen waveform convolutions
(:mod:`speechclip.model.encoders.front_end`). The transformer of wav2vec 2.0 is part of the head, because its [CLS] is
placed before the positional convolution. Over the hidden states of a whole encoder (``model.speech_encoder.part: all``)
the head has a transformer of its own instead. This is our addition, for small models.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError
from speechclip.config import FastVgsConfig, HeadConfig, ModelConfig
from speechclip.data.regions import BOX, Regions, RegionStore
from speechclip.model.bert import BERT_EPSILON, BertLayer, init_bert
from speechclip.model.cross_modal import CrossModalScorer
from speechclip.model.dropout import Dropout
from speechclip.model.encoders.front_end import fixed_frames
from speechclip.model.heads.base import PARALLEL, Head, HeadInputs, HeadOutput, register_head
from speechclip.model.heads.joined_frames import join_frames, repeat_positions
from speechclip.model.heads.speech_tower import SpeechTower, make_mlp

FAST_VGS = "fast_vgs"


def region_kind(config: ModelConfig) -> str:
    """Return the kind of the regions that a model reads; empty for a model without regions."""
    return config.head.fast_vgs.regions if config.head.name == FAST_VGS else ""


def holds_transformer(config: ModelConfig) -> bool:
    """Return whether the head holds the transformer of the speech encoder, and only the convolutions are outside."""
    return config.head.name == FAST_VGS and config.speech_encoder.part == "convolutions"


def check_regions(config: ModelConfig, store: RegionStore | None) -> None:
    """Raise UserError if the regions of a store have another width than the configured one."""
    wanted = config.head.fast_vgs.region_features
    if store is not None and store.width != wanted:
        raise UserError(
            f"{store.directory}: features of width {store.width}, but model.head.fast_vgs.region_features is {wanted}."
            " Change the setting."
        )


class ImageTower(nn.Module):
    """Regions of an image as a sequence and a coarse vector.

    A region is the mean of LN(Linear(features)) and LN(Linear(box)). A [CLS] and BERT layers follow.

    Args:
        settings: sizes.
        dropout: probability of dropout.
        input_dropout: probability of dropout of the features.
        cls_std: standard deviation of the first [CLS] vector.
    """

    def __init__(self, settings: FastVgsConfig, dropout: float, input_dropout: float, cls_std: float) -> None:
        super().__init__()
        dim = settings.dim
        self.features, self.boxes = nn.Linear(settings.region_features, dim), nn.Linear(BOX, dim)
        self.feature_norm, self.box_norm = nn.LayerNorm(dim, eps=BERT_EPSILON), nn.LayerNorm(dim, eps=BERT_EPSILON)
        self.dropout, self.input_dropout = Dropout(dropout), Dropout(input_dropout)
        self.cls = nn.Parameter(torch.randn(dim) * cls_std)
        self.layers = nn.ModuleList(
            BertLayer(dim, settings.heads, settings.feed_forward, dropout) for _ in range(settings.image_layers)
        )
        self.projection = make_mlp(dim)
        init_bert(self, dim)

    def forward(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Encode regions [N, R, F] with boxes [N, R, 4].

        Returns:
            The sequence [N, 1 + R, dim] with [CLS] first, and the coarse vectors [N, dim].
        """
        place = self.box_norm(self.boxes(regions.boxes))
        x = self.dropout((self.feature_norm(self.features(self.input_dropout(regions.features))) + place) / 2)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return x, self.projection(x[:, 0])


class FastVgsHead(Head):
    """Both towers and the cross-modal layers.

    Args:
        settings: sizes.
        inputs: width of the speech features.
        dropout: probability of dropout.
        input_dropout: probability of dropout of the speech features and of the features of regions.
        frames: the fixed number of frames in training and in evaluation.
        part: see :class:`HeadInputs`.
        cls_std: standard deviation of the first [CLS] vectors.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL,)

    def __init__(
        self, settings: FastVgsConfig, inputs: int, *, dropout: float, input_dropout: float, frames: tuple[int, int],
        part: str, cls_std: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = settings
        self._holds_encoder = part == "convolutions"
        stride = settings.joined_frames
        positions = (-(-frames[0] // stride), -(-frames[1] // stride))
        self.speech = SpeechTower(settings, stride * inputs, dropout, positions, cls_std)
        self.image = ImageTower(settings, dropout, input_dropout, cls_std)
        self.input_dropout = Dropout(input_dropout)
        self.scorer = CrossModalScorer(
            settings.dim, settings.heads, layers=settings.cross_layers, hidden=settings.feed_forward, dropout=dropout,
            init_scale=settings.init_scale,
        )  # fmt: skip

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute the coarse vector and the sequence of each utterance. See :class:`Head`."""
        positions, absent = self._positions(frames, padding)
        sequence, valid, coarse = self.speech(self.input_dropout(positions), absent)
        return HeadOutput(coarse, None, sequence=sequence, valid=valid)

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the used layer's output at the frames of the batch: [B, T, dim]."""
        positions, absent = self._positions(frames, padding)
        return self._at_frames(self.speech.transformer(positions, ~absent), frames.shape[1])

    def upstream_states(self, states: Tensor, frames: Tensor, padding: Tensor) -> list[Tensor]:
        """Return the input of the first transformer layer and the output of every layer, without the [CLS]."""
        transformer, (positions, absent) = self.speech.transformer, self._positions(frames, padding)
        found = transformer.states(positions, ~absent, len(transformer.layers))
        return [self._at_frames(state, frames.shape[1]) for state in found]

    def start_from(self, model: Any, source: str) -> None:
        """Copy the transformer of a wav2vec 2.0 or HuBERT of transformers."""
        self.speech.transformer.start_from(model, source)

    def train_encoder(self, part: str | int) -> list[str] | None:
        """Select the trained part of wav2vec 2.0's transformer. Its [CLS] is new and always trained.

        The new transformer over a whole encoder is always trained. See :class:`Head`.
        """
        if not self._holds_encoder:
            return None
        prefix = "speech.transformer."
        return [f"{prefix}{name}" for name in self.speech.transformer.train_part(part)]

    def _positions(self, frames: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input [B, S, C] of the speech tower and its padding [B, S].

        The convolutions of silence behind an utterance count, as published. Hidden states there do not.
        """
        if self._holds_encoder and self.settings.joined_frames == 1:
            return frames, padding
        return join_frames(frames, padding, self.settings.joined_frames)

    def _at_frames(self, states: Tensor, frames: int) -> Tensor:
        """Return states [B, 1 + S, dim] of [CLS] and positions at the frames: [B, T, dim]."""
        return repeat_positions(states[:, 1:], self.settings.joined_frames, frames)


@register_head(FAST_VGS, branches=FastVgsHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> FastVgsHead:
    train, evaluation = inputs.fixed_seconds
    return FastVgsHead(
        settings.fast_vgs, inputs.dim, dropout=settings.dropout, frames=(fixed_frames(train), fixed_frames(evaluation)),
        input_dropout=settings.input_dropout, part=inputs.part, cls_std=settings.cls_std,
    )  # fmt: skip
