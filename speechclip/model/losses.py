"""Contrastive losses: with a temperature (Shih et al. 2022), and with a margin (Peng and Harwath 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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
