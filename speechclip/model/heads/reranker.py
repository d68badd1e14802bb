"""The reranker: cross-modal layers over the frames of a trained head and image regions, as in coarse-to-fine retrieval.

Coarse-to-fine retrieval and the cross-modal layers follow FaST-VGS (Peng and Harwath, ICASSP 2022, arXiv 2109.08186).
Here the coarse score is that of a trained SpeechCLIP head, which stays frozen, and the images are CLIP's patch tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechclip.config import HeadConfig, RerankerConfig
from speechclip.data.regions import BOX, Regions
from speechclip.model.cross_modal import CrossModalScorer
from speechclip.model.heads import hybrid, parallel  # noqa: F401  their builders are in the registry
from speechclip.model.heads.base import Head, HeadInputs, HeadOutput, register_head, registered_heads

RERANKER = "reranker"
_ALIGN_SCALE = 10.0  # of the similarity before the cross-modal layers, at the start
#: Name of the head by the name of the head that it reranks.
RERANKERS = {"parallel": RERANKER, "hybrid": f"{RERANKER}_hybrid"}


class FrozenSpeech(NamedTuple):
    """The part of the input of the cross-modal layers that training does not change.

    Attributes:
        states: [B, S, stride * d], joined frames, zero at padding.
        valid: [B, S] bool, True at the positions that count.
        coarse: [B, J], embeddings of the coarse head, L2-normalised.
    """

    states: Tensor
    valid: Tensor
    coarse: Tensor


class SpeechTokens(NamedTuple):
    """Utterances as the cross-modal layers read them.

    Attributes:
        tokens: [B, 1 + S, dim], [CLS] first.
        valid: [B, 1 + S] bool, True at the positions that count.
        coarse: [B, J], embeddings of the coarse head, L2-normalised.
    """

    tokens: Tensor
    valid: Tensor
    coarse: Tensor


class RerankerHead(Head):
    """A frozen coarse head, and cross-modal layers that score pairs of speech and image.

    The score of a pair has three parts. The first is that of the cross-modal layers. The second is a * cosine / tau,
    with the cosine of the coarse embeddings, their fixed temperature tau and a trained factor a that starts at 1. The
    third is the similarity of both sequences before the cross-modal layers (:meth:`align`). It has a loss of its own,
    so that the sequences are aligned before they are fused (Li et al., NeurIPS 2021, arXiv 2107.07651). All other
    outputs are those of the coarse head.

    Args:
        coarse: the trained head. Its parameters get no gradient and it stays in eval mode.
        dim: d, width of the speech features.
        joint_dim: J, width of the joint space.
        settings: sizes of the cross-modal layers.
    """

    def __init__(self, coarse: Head, dim: int, joint_dim: int, settings: RerankerConfig) -> None:
        super().__init__()
        self.coarse = coarse.requires_grad_(False)
        self.branches = coarse.branches  # type: ignore[misc]  # those of the coarse head
        self.settings = settings
        width = settings.dim
        self.frame_projection = nn.Linear(settings.stride * dim, width)
        self.speech_norm = nn.LayerNorm(width)
        self.region_norm = nn.LayerNorm(settings.region_features)
        self.region_projection = nn.Linear(settings.region_features, width)
        self.box_projection = nn.Linear(BOX, width)
        self.image_norm = nn.LayerNorm(width)
        self.speech_cls, self.image_cls = nn.Linear(joint_dim, width), nn.Linear(joint_dim, width)
        self.scorer = CrossModalScorer(width, settings.heads, layers=settings.layers, dropout=settings.dropout)
        # BERT's small weights give uniform attention. At small widths and few steps, training does not leave it.
        for module in self.scorer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        self.coarse_factor = nn.Parameter(torch.ones(()))
        self.position_weight = nn.Linear(width, 1)
        self.speech_align, self.image_align = nn.Linear(width, width), nn.Linear(width, width)
        self.align_scale = nn.Parameter(torch.tensor(math.log(_ALIGN_SCALE)))

    def train(self, mode: bool = True) -> RerankerHead:
        """Set the mode of the cross-modal layers. The coarse head stays in eval mode."""
        super().train(mode)
        self.coarse.train(False)
        return self

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Apply the coarse head. See :class:`Head`."""
        output: HeadOutput = self.coarse(frames, padding)
        return output

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the output of the coarse head's layer at the frames: [B, T, d]."""
        return self.coarse.frame_states(frames, padding)

    @torch.no_grad()
    def frozen_speech(self, frames: Tensor, padding: Tensor) -> FrozenSpeech:
        """Return the frozen part of the input of the cross-modal layers. A position joins ``stride`` frames.

        Args:
            frames: [B, T, d], weighted sum of hidden states.
            padding: [B, T] bool.
        """
        embedding = self.coarse(frames, padding).embedding
        assert embedding is not None
        coarse = nn.functional.normalize(embedding.float(), dim=-1)
        states = frames if self.settings.frames == "input" else self.coarse.frame_states(frames, padding)
        states = nn.functional.layer_norm(states, states.shape[-1:]).masked_fill(padding[:, :, None], 0)
        stride = self.settings.stride
        missing = -states.shape[1] % stride
        joined = nn.functional.pad(states, (0, 0, 0, missing)).unflatten(1, (-1, stride)).flatten(2)
        valid = ~nn.functional.pad(padding, (0, missing), value=True).unflatten(1, (-1, stride)).all(dim=2)
        return FrozenSpeech(joined, valid, coarse)

    def speech_tokens(self, speech: FrozenSpeech) -> SpeechTokens:
        """Return utterances for the cross-modal layers. [CLS] is a projection of the coarse embedding."""
        joined = self.frame_projection(speech.states)  # [B, S, width]
        tokens = torch.cat([self.speech_cls(speech.coarse)[:, None], joined], dim=1)
        valid = nn.functional.pad(speech.valid, (1, 0), value=True)
        return SpeechTokens(self.speech_norm(tokens), valid, speech.coarse)

    def image_tokens(self, regions: Regions, embeddings: Tensor) -> Tensor:
        """Return images for the cross-modal layers, [N, 1 + R, dim]. [CLS] is a projection of CLIP's embedding.

        Args:
            regions: [N, R, F] and [N, R, 4].
            embeddings: [N, J], of the images, L2-normalised.
        """
        cells = self.region_projection(self.region_norm(regions.features)) + self.box_projection(regions.boxes)
        tokens: Tensor = self.image_norm(torch.cat([self.image_cls(embeddings)[:, None], cells], dim=1))
        return tokens

    def align(self, speech: SpeechTokens, images: Tensor) -> Tensor:
        """Return the similarity of all pairs before the cross-modal layers, [B, N].

        Every position of the speech finds its nearest position of the image, by cosine. The similarity is the mean of
        these cosines, weighted by a softmax over the positions of the speech, times a trained scale.

        Args:
            speech: B utterances.
            images: [N, 1 + R, dim].
        """
        left, right, weights = self._aligned(speech, images)
        cosines = left.flatten(0, 1) @ right.flatten(0, 1).T  # one product of all positions
        nearest = cosines.view(*left.shape[:2], *right.shape[:2]).max(dim=3).values  # [B, S, N]
        return (nearest * weights[:, :, None]).sum(dim=1) * self.align_scale.exp()

    def align_pairs(self, speech: SpeechTokens, images: Tensor) -> Tensor:
        """Return :meth:`align` of the pairs of utterance i and image i, [B]."""
        left, right, weights = self._aligned(speech, images)
        nearest = (left @ right.transpose(1, 2)).max(dim=2).values  # [B, S]
        return (nearest * weights).sum(dim=1) * self.align_scale.exp()

    def _aligned(self, speech: SpeechTokens, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left = nn.functional.normalize(self.speech_align(speech.tokens[:, 1:]).float(), dim=-1)  # without [CLS]
        right = nn.functional.normalize(self.image_align(images).float(), dim=-1)
        scores = self.position_weight(speech.tokens[:, 1:])[..., 0].float()
        return left, right, scores.masked_fill(~speech.valid[:, 1:], float("-inf")).softmax(dim=1)

    def score_pairs(self, speech: SpeechTokens, images: Tensor, cosines: Tensor, scale: Tensor | float) -> Tensor:
        """Return the fine scores of the pairs of utterance i and image i, [P].

        Args:
            speech: P utterances.
            images: [P, 1 + R, dim].
            cosines: [P], of the coarse embeddings of the pairs.
            scale: 1 / tau of the coarse head.
        """
        crossed = self.scorer.score_pairs(speech.tokens, speech.valid, images).float()
        return crossed + self.align_pairs(speech, images) + self.coarse_factor * scale * cosines


def _builder(coarse: str) -> Callable[[HeadConfig, HeadInputs], RerankerHead]:
    def build(settings: HeadConfig, inputs: HeadInputs) -> RerankerHead:
        head = registered_heads()[coarse].build(settings, inputs)
        return RerankerHead(head, inputs.dim, inputs.joint_dim, settings.reranker)

    return build


for _coarse, _name in RERANKERS.items():
    register_head(_name, branches=registered_heads()[_coarse].branches)(_builder(_coarse))
