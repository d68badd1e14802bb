"""Cross-modal scores of speech and image regions, as in FaST-VGS (Peng and Harwath, ICASSP 2022, arXiv 2109.08186).

A layer follows LXMERT (Tan and Bansal, EMNLP 2019, arXiv 1908.07490) with two peculiarities of the authors' code: one
cross-attention serves both directions, and the two self-attentions are bare (no output projection, no residual, no
LayerNorm). Padded frames of speech are masked. Regions of images are not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechclip.model.bert import BareAttention, FeedForward, Residual, init_bert


class Projected(NamedTuple):
    """Tokens with their projections of a cross-attention.

    Attributes:
        tokens: [N, T, d].
        query, key, value: [N, heads, T, d / heads].
    """

    tokens: Tensor
    query: Tensor
    key: Tensor
    value: Tensor

    def grouped(self, groups: int) -> Projected:
        """Return the rows in groups of equal size: [G, N / G, ...]."""
        return Projected(*(part.unflatten(0, (groups, -1)) for part in self))


class CrossModalLayer(nn.Module):
    """Shared cross-attention, bare self-attentions, feed-forward blocks.

    Args:
        dim: d, width of both sequences.
        heads: number of attention heads.
        hidden: width of the feed-forward blocks.
        dropout: probability of dropout, of attention weights too.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.cross = BareAttention(dim, heads, dropout)
        self.cross_output = Residual(dim, dim, dropout)
        self.speech_self, self.image_self = BareAttention(dim, heads, dropout), BareAttention(dim, heads, dropout)
        self.speech_forward, self.image_forward = FeedForward(dim, hidden, dropout), FeedForward(dim, hidden, dropout)

    def project(self, tokens: Tensor) -> Projected:
        """Return tokens [N, T, d] with their projections of the cross-attention."""
        return Projected(tokens, *self.cross.project(tokens))

    def cross_attend(self, speech: Projected, valid: Tensor | None, image: Projected) -> tuple[Tensor, Tensor]:
        """Attend from speech [P, T, d] to image [P, R, d] and back, for pairs."""
        to_image = self.cross.attend(speech.query, image.key, image.value, None)
        to_speech = self.cross.attend(image.query, speech.key, speech.value, valid)
        return self.cross_output(to_image, speech.tokens), self.cross_output(to_speech, image.tokens)

    def cross_attend_all(self, speech: Projected, valid: Tensor, image: Projected) -> tuple[Tensor, Tensor]:
        """Attend from each of A utterances to each of B images of its group, and back.

        Args:
            speech: parts [G, A, ...].
            valid: [G, A, T].
            image: parts [G, B, ...].

        Returns:
            [G * A * B, T, d] and [G * A * B, R, d], as :meth:`cross_attend` returns for the pairs.
        """
        to_image = self.cross.attend_all(speech.query, image.key, image.value, None)
        to_speech = self.cross.attend_all(image.query, speech.key, speech.value, valid).transpose(1, 2)
        return (
            self.cross_output(to_image, speech.tokens[:, :, None]).flatten(0, 2),
            self.cross_output(to_speech, image.tokens[:, None]).flatten(0, 2),
        )

    def rest(self, speech: Tensor, valid: Tensor | None, image: Tensor, first_only: bool) -> tuple[Tensor, Tensor]:
        """Apply the self-attentions and the feed-forward blocks after the cross-attention.

        Args:
            speech: [P, T, d].
            valid: [P, T]; None if all positions count.
            image: [P, R, d].
            first_only: return the first position of each sequence alone. Nothing reads the others of the last layer.
        """
        if first_only:
            attended_s, attended_i = self.speech_self.first(speech, valid), self.image_self.first(image)
        else:
            attended_s, attended_i = self.speech_self(speech, speech, valid), self.image_self(image, image)
        return self.speech_forward(attended_s), self.image_forward(attended_i)


class CrossModalScorer(nn.Module):
    """Scores of pairs of speech and image from the full sequences of both.

    The first position of each sequence is its [CLS]. The score is Linear(2 d -> d), GELU, Linear(d -> 1) on the two
    [CLS] after the layers.

    Args:
        dim: d, width of both sequences.
        heads: number of attention heads.
        layers: number of cross-modal layers.
        hidden: width of the feed-forward blocks; 0 for 4 d.
        dropout: probability of dropout, of attention weights too.
        init_scale: see :func:`init_bert`.
    """

    def __init__(
        self, dim: int, heads: int, *, layers: int = 2, hidden: int = 0, dropout: float = 0.1, init_scale: float = 1.0
    ) -> None:
        super().__init__()
        width = hidden or 4 * dim
        self.layers = nn.ModuleList(CrossModalLayer(dim, heads, width, dropout) for _ in range(layers))
        self.score = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, 1))
        init_bert(self, dim, init_scale)

    def forward(self, speech: Tensor, valid: Tensor, regions: Tensor) -> Tensor:
        """Compute :meth:`score_pairs`."""
        return self.score_pairs(speech, valid, regions)

    def score_pairs(self, speech: Tensor, valid: Tensor, regions: Tensor) -> Tensor:
        """Score P pairs.

        Args:
            speech: [P, T, d], [CLS] first.
            valid: [P, T] bool, True at the positions that count, [CLS] included.
            regions: [P, R, d], [CLS] first.

        Returns:
            [P].
        """
        first = self.layer(0)
        return self.finish(*first.cross_attend(first.project(speech), valid, first.project(regions)), valid)

    def finish(self, speech: Tensor, image: Tensor, valid: Tensor | None) -> Tensor:
        """Return the scores [P] from the output of the first cross-attention.

        Args:
            speech: [P, T, d].
            image: [P, R, d].
            valid: [P, T] bool; None if all positions count.
        """
        last = len(self.layers) - 1
        for number in range(len(self.layers)):
            layer = self.layer(number)
            if number:
                speech, image = layer.cross_attend(layer.project(speech), valid, layer.project(image))
            speech, image = layer.rest(speech, valid, image, first_only=number == last)
        scores: Tensor = self.score(torch.cat([speech[:, 0], image[:, 0]], dim=-1))
        return scores[:, 0]

    def layer(self, number: int) -> CrossModalLayer:
        """Return a layer by its number, from 0."""
        layer = self.layers[number]
        assert isinstance(layer, CrossModalLayer)
        return layer

    def score_grid(self, speech: Tensor, valid: Tensor, regions: Tensor) -> Tensor:
        """Score all pairs of A utterances and B images: [A, B]. See :meth:`score_pairs`."""
        return self.score_groups(speech[None], valid[None], regions[None])[0]

    def score_groups(self, speech: Tensor, valid: Tensor, regions: Tensor) -> Tensor:
        """Score all pairs of A utterances and B images of each of G groups: [G, A, B].

        Args:
            speech: [G, A, T, d], [CLS] first.
            valid: [G, A, T] bool.
            regions: [G, B, R, d], [CLS] first.
        """
        groups, columns, layer = len(valid), regions.shape[1], self.layer(0)
        spoken = layer.project(speech.flatten(0, 1)).grouped(groups)  # each sequence is projected once
        seen = layer.project(regions.flatten(0, 1)).grouped(groups)
        every = valid[:, :, None].expand(-1, -1, columns, -1).flatten(0, 2)
        return self.finish(*layer.cross_attend_all(spoken, valid, seen), every).view(groups, -1, columns)


def score_all_pairs(
    scorer: CrossModalScorer, speech: Tensor, valid: Tensor, regions: Tensor, block: int, recompute: bool | None = None
) -> Tensor:
    """Score all pairs of A utterances and B images in blocks.

    With recomputation, a block keeps its inputs alone while gradients are computed, and its forward pass is computed
    again in the backward pass (Chen et al. 2016, arXiv 1604.06174), with the same dropout masks. The memory grows with
    the block, not with the number of pairs.

    Args:
        scorer: the cross-modal layers.
        speech: [A, T, d].
        valid: [A, T] bool.
        regions: [B, R, d].
        block: pairs that are scored at a time, at least 1.
        recompute: None recomputes if there is more than one block.

    Returns:
        [A, B].
    """
    tall, wide = _tile(block, len(speech), len(regions))
    if recompute is None:
        recompute = len(speech) * len(regions) > block
    recompute = (
        recompute and torch.is_grad_enabled() and (speech.requires_grad or regions.requires_grad or scorer.training)
    )
    lines = []
    for top in range(0, len(speech), tall):
        tiles = []
        for left in range(0, len(regions), wide):
            part = (speech[top : top + tall], valid[top : top + tall], regions[left : left + wide])
            if recompute:
                tiles.append(checkpoint(scorer.score_grid, *part, use_reentrant=False))
            else:
                tiles.append(scorer.score_grid(*part))
        lines.append(torch.cat(tiles, dim=1))
    return torch.cat(lines)


def _tile(block: int, rows: int, columns: int) -> tuple[int, int]:
    """Return the sides of the rectangle of at most ``block`` pairs that is nearest to a square.

    A square shares the projections of its rows and columns best.
    """
    tall = max(1, min(rows, math.isqrt(block)))
    wide = max(1, min(columns, block // tall))
    return max(1, min(rows, block // wide)), wide
