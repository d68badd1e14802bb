"""The head fast_vgs: speech tower, image tower and cross-modal layers of FaST-VGS (Peng and Harwath, ICASSP 2022).

The speech encoder of this head is the frozen waveform convolutions (:mod:`speechclip.model.encoders.front_end`). The
transformer of wav2vec 2.0 is part of the head, because its [CLS] is placed before the positional convolution.
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
from speechclip.model.encoders.front_end import fixed_frames
from speechclip.model.heads.base import PARALLEL, Head, HeadInputs, HeadOutput, register_head
from speechclip.model.heads.speech_tower import SpeechTower, make_mlp

FAST_VGS = "fast_vgs"


def region_kind(config: ModelConfig) -> str:
    """Return the kind of the regions that a model reads; empty for a model without regions."""
    return config.head.fast_vgs.regions if config.head.name == FAST_VGS else ""


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
    """

    def __init__(self, settings: FastVgsConfig, dropout: float) -> None:
        super().__init__()
        dim = settings.dim
        self.features, self.boxes = nn.Linear(settings.region_features, dim), nn.Linear(BOX, dim)
        self.feature_norm, self.box_norm = nn.LayerNorm(dim, eps=BERT_EPSILON), nn.LayerNorm(dim, eps=BERT_EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.cls = nn.Parameter(torch.randn(dim))
        self.layers = nn.ModuleList(
            BertLayer(dim, settings.heads, settings.feed_forward, dropout) for _ in range(settings.image_layers)
        )
        self.projection = make_mlp(dim)
        init_bert(self, dim, settings.init_scale)

    def forward(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Encode regions [N, R, F] with boxes [N, R, 4].

        Returns:
            The sequence [N, 1 + R, dim] with [CLS] first, and the coarse vectors [N, dim].
        """
        place = self.box_norm(self.boxes(regions.boxes))
        x = self.dropout((self.feature_norm(self.features(regions.features)) + place) / 2)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return x, self.projection(x[:, 0])


class FastVgsHead(Head):
    """Both towers and the cross-modal layers.

    Args:
        settings: sizes.
        inputs: C, channels of the waveform convolutions.
        dropout: probability of dropout.
        frames: the fixed number of frames in training and in evaluation.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL,)

    def __init__(self, settings: FastVgsConfig, inputs: int, *, dropout: float, frames: tuple[int, int]) -> None:
        super().__init__()
        self.settings = settings
        self.speech = SpeechTower(settings, inputs, dropout, frames)
        self.image = ImageTower(settings, dropout)
        self.scorer = CrossModalScorer(
            settings.dim, settings.heads, layers=settings.cross_layers, hidden=settings.feed_forward, dropout=dropout,
            init_scale=settings.init_scale,
        )  # fmt: skip

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute the coarse vector and the sequence of each utterance. See :class:`Head`."""
        sequence, valid, coarse = self.speech(frames, padding)
        return HeadOutput(coarse, None, sequence=sequence, valid=valid)

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the used layer's output at the frames of the batch: [B, T, dim]."""
        return self.speech.transformer(frames, ~padding)[:, 1:]

    def upstream_states(self, states: Tensor, frames: Tensor, padding: Tensor) -> list[Tensor]:
        """Return the input of the first transformer layer and the output of every layer, without the [CLS]."""
        transformer = self.speech.transformer
        return [state[:, 1:] for state in transformer.states(frames, ~padding, len(transformer.layers))]

    def start_from(self, model: Any, source: str) -> None:
        """Copy the transformer of a wav2vec 2.0 or HuBERT of transformers."""
        self.speech.transformer.start_from(model, source)

    def train_encoder(self, part: str | int) -> list[str]:
        """Select the trained part of the transformer. Its [CLS] is new and always trained. See :class:`Head`."""
        prefix = "speech.transformer."
        return [f"{prefix}{name}" for name in self.speech.transformer.train_part(part)]


@register_head(FAST_VGS, branches=FastVgsHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> FastVgsHead:
    train, evaluation = inputs.fixed_seconds
    return FastVgsHead(
        settings.fast_vgs, inputs.dim, dropout=settings.dropout, frames=(fixed_frames(train), fixed_frames(evaluation))
    )
