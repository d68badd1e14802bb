"""Cross-modal scores of listed pairs in evaluation: each utterance with its candidates.

A plain loop computes every pair alone. Here an image is projected once for all of its pairs, and an utterance once for
all of its candidates. The output projection of the first cross-attention is applied to the values of an utterance or
image and not to the sums of every pair, which is the same, because both are linear.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechclip.model.cross_modal import CrossModalLayer, CrossModalScorer

_GALLERY_BYTES = 2**30  # of the images that are projected at a time


class ProjectedImages(NamedTuple):
    """Images for the first cross-attention.

    Attributes:
        tokens: [I, R, d].
        query, key: [heads, I, R, d / heads].
        value: [I, heads * R, d], behind the output projection.
    """

    tokens: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


@torch.no_grad()
def score_listed_pairs(
    scorer: CrossModalScorer, speech: Tensor, valid: Tensor, regions: Tensor, pairs: Tensor, block: int
) -> Tensor:
    """Score some pairs, as coarse-to-fine retrieval needs them.

    Args:
        scorer: the cross-modal layers, in evaluation mode.
        speech: [A, T, d], on any device. Valid positions come first.
        valid: [A, T] bool.
        regions: [B, R, d], on any device.
        pairs: [P, 2] int64, an utterance and an image each.
        block: candidates that are scored at a time. Less needs less memory.

    Returns:
        [P] float32, on the CPU.
    """
    device = next(scorer.parameters()).device
    scores = torch.empty(len(pairs), device=device)
    pairs, lengths = pairs.cpu(), valid.sum(dim=1).tolist()
    step = max(1, _GALLERY_BYTES // (4 * regions.shape[1] * regions.shape[2] * (3 + scorer.layer(0).cross.heads)))
    for start in range(0, len(regions), step):
        inside = torch.nonzero((pairs[:, 1] >= start) & (pairs[:, 1] < start + step))[:, 0]
        if not len(inside):
            continue
        inside = inside[torch.argsort(pairs[inside, 0], stable=True)]
        used, columns = torch.unique(pairs[inside, 1], return_inverse=True)  # a single query has few candidates
        images = _project_images(scorer.layer(0), regions[used.to(regions.device)].to(device))
        utterances, counts = torch.unique_consecutive(pairs[inside, 0], return_counts=True)
        each = zip(utterances.tolist(), inside.split(counts.tolist()), columns.split(counts.tolist()))
        for utterance, places, candidates in each:
            tokens = speech[utterance, : lengths[utterance]].to(device)
            for part, at in zip(places.split(block), candidates.split(block)):
                scores[part.to(device)] = _score(scorer, tokens, images, at.to(device)).float()
    return scores.cpu()


def _values(layer: CrossModalLayer, value: Tensor) -> Tensor:
    """Return values [N, heads, T, d / heads] behind the output projection, [N, heads * T, d]."""
    weight = layer.cross_output.dense.weight.unflatten(1, (layer.cross.heads, -1)).permute(1, 2, 0)  # [H, s, d]
    return (value @ weight).flatten(1, 2)


def _project_images(layer: CrossModalLayer, regions: Tensor) -> ProjectedImages:
    query, key, value = layer.cross.project(regions)
    query, key = (part.transpose(0, 1).contiguous() for part in (query, key))
    return ProjectedImages(regions, query, key, _values(layer, value))


def _score(scorer: CrossModalScorer, speech: Tensor, images: ProjectedImages, at: Tensor) -> Tensor:
    """Return the scores [K] of an utterance [T, d] without padding and the images ``at`` [K]."""
    layer = scorer.layer(0)
    query, key, value = layer.cross.project(speech[None])
    bias, scale = layer.cross_output.dense.bias, key.shape[3] ** -0.5
    tokens, image_values = images.tokens.index_select(0, at), images.value.index_select(0, at)
    count, regions, length, heads = len(at), tokens.shape[1], len(speech), key.shape[1]
    keys, queries = (part.index_select(1, at).flatten(1, 2) for part in (images.key, images.query))  # [H, K * R, s]
    to_image = (keys @ (query[0] * scale).transpose(1, 2)).view(heads, count, regions, length).softmax(dim=2)
    to_speech = (queries @ (key[0] * scale).transpose(1, 2)).softmax(dim=2)  # [H, K * R, T]
    from_image = to_image.permute(1, 3, 0, 2).reshape(count, length, heads * regions)
    from_speech = to_speech.transpose(0, 1).reshape(count * regions, heads * length)
    spoken = torch.baddbmm((speech + bias).expand(count, -1, -1), from_image, image_values)
    seen = torch.addmm((tokens + bias).flatten(0, 1), from_speech, _values(layer, value)[0]).view_as(tokens)
    norm = layer.cross_output.norm
    return scorer.finish(norm(spoken), norm(seen), None)
