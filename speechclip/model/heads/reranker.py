"""The reranker: cross-modal layers over the frames of a trained head and image regions, as in coarse-to-fine retrieval.

Coarse-to-fine retrieval and the cross-modal layers follow FaST-VGS (Peng and Harwath, ICASSP 2022, arXiv 2109.08186).
Here the coarse score is that of a trained SpeechCLIP head, which stays frozen, and the images are CLIP's patch tokens.

The coarse head has seen its training pairs often. There its scores are much better than on new pairs. So the fine score
is trained without them, and both are added afterwards, with a weight that is chosen on dev.
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
_ALIGN_SCALE = 16.0  # of the similarity before the cross-modal layers, at the start
_POOLED_SCALE = 20.0  # of the cosine of the pooled speech, at the start
_CONTEXT = 3  # positions that the convolution over the joined frames sees
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
        pooled: [B, J], weighted mean of the positions in the joint space, L2-normalised.
    """

    tokens: Tensor
    valid: Tensor
    coarse: Tensor
    pooled: Tensor


class RerankerHead(Head):
    """A frozen coarse head, and cross-modal layers that score pairs of speech and image.

    The order of the candidates is that of cosine / tau + w * fine, with the cosine of the coarse embeddings, their
    temperature tau, and a weight w that is chosen on dev. The fine score has three parts. The first is that of the
    cross-modal layers. The others compare speech and image before these layers: by position (:meth:`align`), and by the
    cosine of the pooled speech and CLIP's embedding of the image. They have losses of their own, so that speech and
    image are aligned before they are fused (Li et al., NeurIPS 2021, arXiv 2107.07651). All other outputs are those of
    the coarse head.

    Args:
        coarse: the trained head. Its parameters get no gradient and it stays in eval mode.
        dim: d, width of the speech features.
        joint_dim: J, width of the joint space.
        settings: sizes of the cross-modal layers.

    Attributes:
        fine_weight: w, a scalar.
    """

    fine_weight: Tensor

    def __init__(self, coarse: Head, dim: int, joint_dim: int, settings: RerankerConfig) -> None:
        super().__init__()
        self.coarse = coarse.requires_grad_(False)
        self.branches = coarse.branches  # type: ignore[misc]  # those of the coarse head
        self.settings = settings
        width = settings.dim
        self.frame_dropout = nn.Dropout(settings.input_dropout)
        self.frame_projection, self.frame_norm = nn.Linear(settings.stride * dim, width), nn.LayerNorm(width)
        self.context = nn.Conv1d(width, width, _CONTEXT, padding=_CONTEXT // 2)
        self.speech_layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, settings.heads, 4 * width, settings.dropout, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.speech_layers)
        )  # fmt: skip
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
        nn.init.zeros_(self.scorer.score[2].weight)  # type: ignore[arg-type]  # what is not learned adds no noise
        self.register_buffer("fine_weight", torch.ones(()))
        self.position_weight = nn.Linear(width, 1)
        # every dimension has its own weights over the positions, as attention with one head for each dimension
        self.pooled_weights, self.pooled_values = nn.Linear(width, width), nn.Linear(width, width)
        self.pooled_projection = nn.Linear(width, joint_dim)
        self.pooled_scale = nn.Parameter(torch.tensor(math.log(_POOLED_SCALE)))
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
        joined = self.frame_norm(self.frame_projection(self.frame_dropout(speech.states)))  # [B, S, width]
        joined = joined.masked_fill(~speech.valid[:, :, None], 0)
        joined = joined + nn.functional.gelu(self.context(joined.transpose(1, 2))).transpose(1, 2)
        for layer in self.speech_layers:
            joined = layer(joined, src_key_padding_mask=~speech.valid)
        tokens = torch.cat([self.speech_cls(speech.coarse)[:, None], joined], dim=1)
        tokens = self.speech_norm(tokens)
        weights = (
            self.pooled_weights(tokens[:, 1:]).masked_fill(~speech.valid[:, :, None], float("-inf")).softmax(dim=1)
        )
        pooled = self.pooled_projection((self.pooled_values(tokens[:, 1:]) * weights).sum(dim=1)).float()
        valid = nn.functional.pad(speech.valid, (1, 0), value=True)
        return SpeechTokens(tokens, valid, speech.coarse, nn.functional.normalize(pooled, dim=-1))

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
        return left, right, self._position_weights(speech.tokens, speech.valid[:, 1:])

    def _position_weights(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Return the share of each position but [CLS] in the pooled speech, [B, S]."""
        scores = self.position_weight(tokens[:, 1:])[..., 0].float()
        return scores.masked_fill(~valid, float("-inf")).softmax(dim=1)

    def match_pooled(self, speech: SpeechTokens, embeddings: Tensor) -> Tensor:
        """Return the scaled cosines of the pooled speech and embeddings [N, J] of images, [B, N]."""
        return speech.pooled @ embeddings.T * self.pooled_scale.exp()

    def fine_scores(self, speech: SpeechTokens, images: Tensor, embeddings: Tensor) -> Tensor:
        """Return the fine scores of the pairs of utterance i and image i, [P].

        Args:
            speech: P utterances.
            images: [P, 1 + R, dim].
            embeddings: [P, J], of the images, L2-normalised.
        """
        crossed = self.scorer.score_pairs(speech.tokens, speech.valid, images).float()
        pooled = (speech.pooled * embeddings).sum(dim=1) * self.pooled_scale.exp()
        return crossed + self.align_pairs(speech, images) + pooled


def _builder(coarse: str) -> Callable[[HeadConfig, HeadInputs], RerankerHead]:
    def build(settings: HeadConfig, inputs: HeadInputs) -> RerankerHead:
        head = registered_heads()[coarse].build(settings, inputs)
        return RerankerHead(head, inputs.dim, inputs.joint_dim, settings.reranker)

    return build


for _coarse, _name in RERANKERS.items():
    register_head(_name, branches=registered_heads()[_coarse].branches)(_builder(_coarse))
