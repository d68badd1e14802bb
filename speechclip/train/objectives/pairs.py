"""The objectives on pairs of speech and image: matching with hard negatives, and cross-modal denoising.

Sources: "SIM" of Zhou and Li 2024, arXiv 2408.13119, and "CMD" of Zhou et al. 2024, arXiv 2408.13705. Neither has
public code. We know their abstracts and summaries: SIM classifies the output of a multimodal encoder as match or no
match, and mines its negatives with the similarities of the contrastive task. CMD (cross-modal denoising) reconstructs
features of one modality from noisy ones with the help of the other modality, in training only. The rest is our
interpretation:

* The image is CLIP's joint embedding, because recipes store no other features of all images. It is the query of one
  cross-attention layer over the speech.
* The speech is the embedding of the head's first branch, as a first token, and the input of the head at the frames,
  averaged over ``stride`` frames.
* CMD adds noise to the image. The clean image is frozen, so no trivial solution exists. The other direction, noisy
  speech and a clean image, has a target that is trained, and is left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechclip.model.heads.joined_frames import in_runs


class SpeechTokens(NamedTuple):
    """The speech of a batch for cross-attention.

    Attributes:
        embedding: [B, J], L2-normalised, with gradient.
        frames: [B, S, d].
        padding: [B, S] bool, True at positions that are padding.
    """

    embedding: Tensor
    frames: Tensor
    padding: Tensor

    def select(self, at: Tensor) -> SpeechTokens:
        """Return the speech of utterances ``at`` [N]."""
        return SpeechTokens(self.embedding[at], self.frames[at], self.padding[at])


def pool_frames(frames: Tensor, lengths: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return the means of runs of ``stride`` frames, and the positions that are padding.

    Args:
        frames: [B, T, d].
        lengths: [B], valid frames of each utterance. The last run of an utterance may be shorter.
        stride: frames in a run.

    Returns:
        [B, S, d] and [B, S] bool, with S = ceil(T / stride).
    """
    valid = torch.arange(frames.shape[1], device=frames.device)[None, :] < lengths[:, None]
    counts = in_runs(valid, stride).sum(dim=2)
    return in_runs(frames * valid[:, :, None], stride).sum(dim=2) / counts.clamp(min=1)[:, :, None], counts == 0


class CrossEncoder(nn.Module):
    """One cross-attention layer (post-norm, feed-forward 4d) from an image vector to the tokens of speech.

    Args:
        dim: d, width of the frames.
        joint: J, width of the embeddings.
        out: width of the output.
    """

    def __init__(self, dim: int, joint: int, out: int) -> None:
        super().__init__()
        self.image, self.speech, self.frames = nn.Linear(joint, dim), nn.Linear(joint, dim), nn.Linear(dim, dim)
        self.attention = nn.MultiheadAttention(dim, math.gcd(8, dim), batch_first=True)
        self.norm, self.last_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.out = nn.Linear(dim, out)

    def forward(self, images: Tensor, speech: SpeechTokens) -> Tensor:
        """Return [B, N, out] for images [B, N, J] next to the speech of each row."""
        scale = math.sqrt(images.shape[2])  # L2-normalised vectors would be small next to the frames
        query = self.image(images.to(speech.frames.dtype) * scale)
        first = self.speech(speech.embedding.to(speech.frames.dtype) * scale)[:, None]
        tokens = torch.cat([first, self.frames(speech.frames)], dim=1)
        mask = nn.functional.pad(speech.padding, (1, 0), value=False)
        state = self.norm(query + self.attention(query, tokens, tokens, mask, need_weights=False)[0])
        return self.out(self.last_norm(state + self.feed_forward(state)))


def mine(similarities: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a hard negative for each row, with the softmax of the similarities as probabilities.

    Args:
        similarities: [N, M], cosines divided by the temperature.
        same: [N, M] bool, True for pairs of the same image.

    Returns:
        The drawn columns [N], and [N] bool, True for rows that have a negative.
    """
    found = ~same.all(dim=1)
    weights = similarities.detach().float().masked_fill(same, float("-inf")).masked_fill(~found[:, None], 0.0)
    return weights.softmax(dim=1).multinomial(1)[:, 0], found


def matching_loss(matching: CrossEncoder, speech: SpeechTokens, images: Tensor, negatives: Negatives) -> Tensor:
    """Return the binary cross-entropy of true pairs, pairs with a hard image and pairs with a hard utterance.

    Args:
        matching: with one output, the logit of a match.
        speech: of B utterances.
        images: [B, J], their images.
        negatives: see :func:`hard_negatives`.
    """
    rows = torch.stack([images, negatives.images], dim=1)  # [B, 2, J]
    logits = matching(rows, speech)[..., 0]
    other = matching(images[:, None], speech.select(negatives.utterances))[:, 0, 0]
    losses = nn.functional.softplus  # softplus(-x) is the loss of a match, softplus(x) that of no match
    with_image = losses(logits[:, 1].float()) * negatives.has_image
    with_speech = losses(other.float()) * negatives.has_utterance
    count = len(images) + negatives.has_image.sum() + negatives.has_utterance.sum()
    total: Tensor = losses(-logits[:, 0].float()).sum() + with_image.sum() + with_speech.sum()
    return total / count


class Negatives(NamedTuple):
    """Hard negatives of B pairs.

    Attributes:
        images: [B, J], a hard image for each utterance.
        has_image: [B] bool, False if all images are the utterance's own.
        utterances: [B] int, row of a hard utterance for each image.
        has_utterance: [B] bool, False if all utterances describe the image.
    """

    images: Tensor
    has_image: Tensor
    utterances: Tensor
    has_utterance: Tensor


@torch.no_grad()
def hard_negatives(
    speech: Tensor, own: Tensor, groups: Tensor, pool: Tensor, pool_groups: Tensor, scale: Tensor | float
) -> Negatives:
    """Mine hard negatives with the cosines of the contrastive task.

    Images come from all processes and from the queue. Utterances come from this process's share of the batch, because
    their frames stay on it (our interpretation).

    Args:
        speech: [B, J], embeddings of this process's utterances, L2-normalised.
        own: [B, J], their images.
        groups: [B] int, their images.
        pool: [M, J], images to draw from.
        pool_groups: [M] int.
        scale: 1 / temperature.
    """
    at_image, has_image = mine(speech @ pool.T * scale, groups[:, None] == pool_groups[None, :])
    at_speech, has_utterance = mine(own @ speech.T * scale, groups[:, None] == groups[None, :])
    return Negatives(pool[at_image], has_image, at_speech, has_utterance)


def denoising_loss(denoiser: CrossEncoder, speech: SpeechTokens, images: Tensor, noise: float) -> Tensor:
    """Return 1 - cosine of the clean images and their reconstruction from noisy ones and the speech.

    Args:
        denoiser: with J outputs.
        speech: of B utterances.
        images: [B, J], their images, L2-normalised.
        noise: expected length of the Gaussian noise vector that is added to an image.
    """
    noisy = images + noise * torch.randn_like(images) / math.sqrt(images.shape[1])
    found = denoiser(nn.functional.normalize(noisy, dim=-1)[:, None], speech)[:, 0]
    return (1 - nn.functional.cosine_similarity(found.float(), images.float(), dim=-1)).mean()
