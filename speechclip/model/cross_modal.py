"""Cross-modal scores of speech and image regions, as in FaST-VGS (Peng and Harwath, ICASSP 2022, arXiv 2109.08186).

A layer follows LXMERT (Tan and Bansal, EMNLP 2019, arXiv 1908.07490) with two peculiarities of the authors' code: one
cross-attention serves both directions, and the two self-attentions are bare (no output projection, no residual, no
LayerNorm). Padded frames of speech are masked. Regions of images are not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechclip.model.bert import BareAttention, FeedForward, Residual, init_bert


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

    def cross_attend(self, speech: Tensor, valid: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from speech [P, T, d] to image [P, R, d] and back, for pairs."""
        query_s, key_s, value_s = self.cross.project(speech)
        query_i, key_i, value_i = self.cross.project(image)
        to_image = self.cross.attend(query_s, key_i, value_i, None)
        to_speech = self.cross.attend(query_i, key_s, value_s, valid)
        return self.cross_output(to_image, speech), self.cross_output(to_speech, image)

    def cross_attend_groups(self, speech: Tensor, valid: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Attend between all pairs of speech [G, A, T, d] and image [G, B, R, d] of each group.

        The projections of an utterance or image are computed once.

        Returns:
            [G * A * B, T, d] and [G * A * B, R, d], with the images of an utterance next to each other.
        """
        count_s, count_i = speech.shape[1], image.shape[1]

        def rows(tokens: Tensor) -> Tensor:
            return tokens[:, :, None].expand(-1, -1, count_i, *tokens.shape[2:]).flatten(0, 2)

        def columns(tokens: Tensor) -> Tensor:
            return tokens[:, None].expand(-1, count_s, *tokens.shape[1:]).flatten(0, 2)

        query_s, key_s, value_s = (rows(part) for part in self.cross.project(speech))
        query_i, key_i, value_i = (columns(part) for part in self.cross.project(image))
        to_image = self.cross.attend(query_s, key_i, value_i, None)
        to_speech = self.cross.attend(query_i, key_s, value_s, rows(valid))
        return self.cross_output(to_image, rows(speech)), self.cross_output(to_speech, columns(image))

    def rest(self, speech: Tensor, valid: Tensor, image: Tensor, first_only: bool) -> tuple[Tensor, Tensor]:
        """Apply the self-attentions and the feed-forward blocks after the cross-attention.

        Args:
            speech: [P, T, d].
            valid: [P, T].
            image: [P, R, d].
            first_only: return the first position of each sequence alone. Nothing reads the others of the last layer.
        """
        from_speech, from_image = (speech[:, :1], image[:, :1]) if first_only else (speech, image)
        attended_s = self.speech_self(from_speech, speech, valid)
        attended_i = self.image_self(from_image, image)
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
        layer = self.layers[0]
        assert isinstance(layer, CrossModalLayer)
        tokens, image = layer.cross_attend(speech, valid, regions)
        return self._finish(tokens, image, valid)

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
        layer = self.layers[0]
        assert isinstance(layer, CrossModalLayer)
        tokens, image = layer.cross_attend_groups(speech, valid, regions)
        shape = (*valid.shape[:2], regions.shape[1])  # G, A, B
        every = valid[:, :, None].expand(*shape, -1).flatten(0, 2)
        return self._finish(tokens, image, every).view(shape)

    def _finish(self, speech: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """Return the scores from the output of the first cross-attention."""
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, CrossModalLayer)
            if number:
                speech, image = layer.cross_attend(speech, valid, image)
            speech, image = layer.rest(speech, valid, image, first_only=number == last)
        scores: Tensor = self.score(torch.cat([speech[:, 0], image[:, 0]], dim=-1))
        return scores[:, 0]


def score_all_pairs(scorer: CrossModalScorer, speech: Tensor, valid: Tensor, regions: Tensor, block: int) -> Tensor:
    """Score all pairs of A utterances and B images in blocks.

    While gradients are computed, a block keeps its inputs alone, and its forward pass is computed again in the backward
    pass (Chen et al. 2016, arXiv 1604.06174), with the same dropout masks. The memory grows with the block, not with
    the number of pairs.

    Args:
        scorer: the cross-modal layers.
        speech: [A, T, d].
        valid: [A, T] bool.
        regions: [B, R, d].
        block: pairs that are scored at a time, at least 1.

    Returns:
        [A, B].
    """
    tall, wide = _tile(block, len(speech), len(regions))
    recompute = torch.is_grad_enabled() and (speech.requires_grad or regions.requires_grad or scorer.training)
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


@torch.no_grad()
def score_listed_pairs(
    scorer: CrossModalScorer, speech: Tensor, valid: Tensor, regions: Tensor, pairs: Tensor, block: int
) -> Tensor:
    """Score some pairs in blocks, without gradients, as coarse-to-fine retrieval needs them.

    Args:
        scorer: the cross-modal layers.
        speech: [A, T, d], on any device.
        valid: [A, T] bool.
        regions: [B, R, d], on any device.
        pairs: [P, 2] int64, an utterance and an image each.
        block: pairs that are scored at a time.

    Returns:
        [P] float32, on the CPU.
    """
    device = next(scorer.parameters()).device
    scores = []
    for part in pairs.split(block):
        rows, columns = part[:, 0].to(speech.device), part[:, 1].to(regions.device)
        inputs = (speech[rows], valid[rows], regions[columns])
        scores.append(scorer.score_pairs(*(x.to(device) for x in inputs)).float().cpu())
    return torch.cat(scores) if scores else torch.empty(0)


def _tile(block: int, rows: int, columns: int) -> tuple[int, int]:
    """Return the sides of the rectangle of at most ``block`` pairs that is nearest to a square.

    A square shares the projections of its rows and columns best.
    """
    tall = max(1, min(rows, math.isqrt(block)))
    wide = max(1, min(columns, block // tall))
    return max(1, min(rows, block // wide)), wide
