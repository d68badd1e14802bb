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
from speechclip.model.heads.joined_frames import join_frames
from speechclip.model.heads.pooled import PooledSpeech

RERANKER = "reranker"
_POOLED_SCALE = 20.0  # of the cosine of the pooled speech, at the start
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
        pooled: [B, J], of :class:`PooledSpeech`, L2-normalised.
    """

    tokens: Tensor
    valid: Tensor
    coarse: Tensor
    pooled: Tensor


class RerankerHead(Head):
    """A frozen coarse head, and cross-modal layers that score pairs of speech and image.

    The order of the candidates is that of cosine / tau + w * fine, with the cosine of the coarse embeddings, their
    temperature tau, and a weight w that is chosen on dev. The fine score has two parts: that of the cross-modal layers,
    and the scaled cosine of the pooled speech and CLIP's embedding of the image. The second has a loss of its own, so
    that speech and image are aligned before they are fused (Li et al., NeurIPS 2021, arXiv 2107.07651). All other
    outputs are those of the coarse head.

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
        self.pooled = PooledSpeech(dim, joint_dim, width=width, stride=settings.stride, dropout=settings.input_dropout)
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
        self.pooled_scale = nn.Parameter(torch.tensor(math.log(_POOLED_SCALE)))

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
        states = nn.functional.layer_norm(states, states.shape[-1:])
        joined, hidden = join_frames(states, padding, self.settings.stride)
        return FrozenSpeech(joined, ~hidden, coarse)

    def speech_tokens(self, speech: FrozenSpeech) -> SpeechTokens:
        """Return utterances for the cross-modal layers. [CLS] is a projection of the coarse embedding."""
        positions = self.pooled.joined(speech.states, ~speech.valid)  # [B, S, width]
        for layer in self.speech_layers:
            positions = layer(positions, src_key_padding_mask=~speech.valid)
        tokens = self.speech_norm(torch.cat([self.speech_cls(speech.coarse)[:, None], positions], dim=1))
        pooled = nn.functional.normalize(self.pooled.pool(positions, ~speech.valid)[0].float(), dim=-1)
        return SpeechTokens(tokens, nn.functional.pad(speech.valid, (1, 0), value=True), speech.coarse, pooled)

    def image_tokens(self, regions: Regions, embeddings: Tensor) -> Tensor:
        """Return images for the cross-modal layers, [N, 1 + R, dim]. [CLS] is a projection of CLIP's embedding.

        Args:
            regions: [N, R, F] and [N, R, 4].
            embeddings: [N, J], of the images, L2-normalised.
        """
        cells = self.region_projection(self.region_norm(regions.features)) + self.box_projection(regions.boxes)
        tokens: Tensor = self.image_norm(torch.cat([self.image_cls(embeddings)[:, None], cells], dim=1))
        return tokens

    def match_pooled(self, speech: SpeechTokens, embeddings: Tensor) -> Tensor:
        """Return the scaled cosines of the pooled speech and embeddings [N, J] of images, [B, N]."""
        return speech.pooled @ embeddings.T * self.pooled_scale.exp()

    def pooled_scores(self, pooled: Tensor, embeddings: Tensor, pairs: Tensor) -> Tensor:
        """Return these cosines of pairs [P, 2] of pooled speech [U, J] and embeddings [I, J]: [P], on the CPU."""
        rows, columns = pairs.unbind(dim=1)
        cosines = (pooled[rows.to(pooled.device)] * embeddings[columns.to(embeddings.device)]).sum(dim=1)
        return (cosines * self.pooled_scale.exp().to(cosines.device)).cpu()


def _builder(coarse: str) -> Callable[[HeadConfig, HeadInputs], RerankerHead]:
    def build(settings: HeadConfig, inputs: HeadInputs) -> RerankerHead:
        head = registered_heads()[coarse].build(settings, inputs)
        return RerankerHead(head, inputs.dim, inputs.joint_dim, settings.reranker)

    return build


for _coarse, _name in RERANKERS.items():
    register_head(_name, branches=registered_heads()[_coarse].branches)(_builder(_coarse))
