"""Contrastive losses: softmax (Shih et al. 2022), sigmoid (Zhai et al. 2023), margin (Peng and Harwath 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechclip.config import LossConfig


def masked_contrastive_loss(speech: Tensor, target: Tensor, groups: Tensor, scale: Tensor | float) -> Tensor:
    """Return the symmetric cross-entropy of a batch. Two pairs of the same group (image) are not negatives.

    Args:
        speech: [B, D], L2-normalised.
        target: [B, D], L2-normalised; row i belongs to row i of ``speech``.
        groups: [B] int, the image of each pair.
        scale: 1 / temperature.

    Returns:
        The mean of the cross-entropies of both directions, a scalar.
    """
    with torch.autocast(speech.device.type, enabled=False):  # in bfloat16 a logit of 14 has steps of 1/16
        logits = speech.float() @ target.float().T * scale
    return masked_cross_entropy(logits, groups)


def masked_cross_entropy(logits: Tensor, groups: Tensor) -> Tensor:
    """Return the mean of the cross-entropies over rows and columns. Two pairs of the same group are not negatives.

    Args:
        logits: [B, B]; the diagonal belongs together.
        groups: [B] int, the image of each pair.
    """
    same = groups[:, None] == groups[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    diagonal = torch.arange(len(logits), device=logits.device)
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits, diagonal) + cross_entropy(logits.T, diagonal)) / 2


def masked_sigmoid_loss(
    speech: Tensor, target: Tensor, groups: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Return the sigmoid loss of a batch: every pair is a binary decision. Two pairs of the same group are left out.

    Args:
        speech: [B, D], L2-normalised.
        target: [B, D], L2-normalised; row i belongs to row i of ``speech``.
        groups: [B] int, the image of each pair.
        scale: 1 / temperature.
        bias: added to every scaled cosine.

    Returns:
        The sum of -log(sigmoid(z)) over the pairs, divided by B, a scalar. z is the logit of a true pair, and minus the
        logit of any other pair.
    """
    with torch.autocast(speech.device.type, enabled=False):
        logits = speech.float() @ target.float().T * scale + bias
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    same = (groups[:, None] == groups[None, :]) & ~own
    losses = -nn.functional.logsigmoid(torch.where(own, logits, -logits))
    return losses.masked_fill(same, 0.0).sum() / len(logits)


def margin_loss(scores: Tensor, groups: Tensor, margin: float) -> Tensor:
    """Return the cross-entropy over rows plus that over columns. A margin is subtracted from the diagonal.

    Two pairs of the same group (image) are not negatives. This is the loss of FaST-VGS (Peng and Harwath, ICASSP 2022).

    Args:
        scores: [B, B], of utterance i and image j. Pairs on the diagonal match.
        groups: [B] int, the image of each pair.
        margin: makes matching pairs harder.

    Returns:
        The sum of the mean cross-entropies of both directions, a scalar.
    """
    scores = scores.float()
    same = groups[:, None] == groups[None, :]
    same.fill_diagonal_(False)
    logits = scores - margin * torch.eye(len(scores), device=scores.device)
    logits = logits.masked_fill(same, float("-inf"))
    diagonal = torch.arange(len(scores), device=scores.device)
    return nn.functional.cross_entropy(logits, diagonal) + nn.functional.cross_entropy(logits.T, diagonal)


def similar_parts(scores: Tensor, groups: Tensor, order: Tensor, size: int) -> Tensor:
    """Return an order in which each run of ``size`` pairs is a part of similar pairs: hard negatives of each other.

    The first pair that is left takes the pairs with the highest sum of both scores, until none are left. The last parts
    are what the others left over. Two pairs of an image are not negatives: they are chosen last. This is our addition.

    Args:
        scores: [B, B], of utterance i and image j.
        groups: [B] int, the image of each pair.
        order: [B], the order in which pairs begin a part.
        size: of a part.

    Returns:
        [B], a permutation.
    """
    similar = (scores + scores.T).masked_fill(groups[:, None] == groups[None, :], float("-inf"))
    left, parts = order, []
    while len(left):
        first, rest = left[:1], left[1:]
        near = similar[first[0], rest].argsort(descending=True, stable=True)
        parts += [first, rest[near[: size - 1]]]
        left = rest[near[size - 1 :].sort().values]
    return torch.cat(parts)


class ContrastiveLoss(nn.Module):
    """:func:`masked_contrastive_loss` with a fixed or learned temperature.

    Args:
        temperature: tau at the start.
        learn: train log(1 / tau).
    """

    def __init__(self, temperature: float, *, learn: bool) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)), requires_grad=learn)

    @property
    def scale(self) -> Tensor:
        """1 / temperature, a scalar."""
        return self.log_scale.exp()

    def forward(self, speech: Tensor, target: Tensor, groups: Tensor) -> Tensor:
        """Compute :func:`masked_contrastive_loss`."""
        return masked_contrastive_loss(speech, target, groups, self.scale)


class SigmoidLoss(ContrastiveLoss):
    """:func:`masked_sigmoid_loss` with a fixed or learned temperature and bias.

    Args:
        temperature: tau at the start; 0.1 in SigLIP.
        bias: of the logits at the start; -10 in SigLIP.
        learn: train log(1 / tau) and the bias.
    """

    def __init__(self, temperature: float, bias: float, *, learn: bool) -> None:
        super().__init__(temperature, learn=learn)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learn)

    def forward(self, speech: Tensor, target: Tensor, groups: Tensor) -> Tensor:
        """Compute :func:`masked_sigmoid_loss`."""
        return masked_sigmoid_loss(speech, target, groups, self.scale, self.bias)


def make_loss(config: LossConfig) -> ContrastiveLoss:
    """Return the configured loss."""
    if config.name == "sigmoid":
        return SigmoidLoss(config.temperature, config.bias, learn=config.learn_temperature)
    return ContrastiveLoss(config.temperature, learn=config.learn_temperature)
