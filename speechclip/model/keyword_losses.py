"""Losses on the quantiser's probabilities: keywords that repeat each other, and subwords that are never selected.

Both are our own. The published models train keywords with the contrastive loss alone. The coverage loss has the form of
the diversity loss of wav2vec 2.0 (Baevski et al. 2020), which keeps all codes of a codebook in use.
"""

from __future__ import annotations

import math

from torch import Tensor


def repetition(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Return the probability that two keywords of an utterance select the same subword.

    Args:
        probabilities: [B, K, V], of the subwords for each keyword.
        mask: [B, K] bool, True for keywords that exist.

    Returns:
        The mean over the pairs of keywords of each utterance, then over the utterances, a scalar in [0, 1]. An
        utterance with one keyword counts as 0.
    """
    kept = probabilities * mask[:, :, None]
    summed = kept.sum(dim=1)  # [B, V]
    both = summed.square().sum(dim=1) - kept.square().sum(dim=(1, 2))  # sum over ordered pairs
    count = mask.sum(dim=1)
    pairs: Tensor = both / (count * (count - 1)).clamp(min=1)
    return pairs.mean()


def usage(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Return the mean probabilities of the subwords over the keywords of each utterance: [B, V]."""
    summed = (probabilities * mask[:, :, None]).sum(dim=1)
    return summed / mask.sum(dim=1, keepdim=True).clamp(min=1)


def uncovered(used: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - H / log V, where H is the entropy of the mean use of the subwords.

    Args:
        used: [B, V], see :func:`usage`.
        valid: [V] bool, False for special tokens.

    Returns:
        A scalar: 0 if all V valid subwords are used equally, 1 if a single one is used.
    """
    mean = used.mean(dim=0)[valid]
    entropy = -(mean * mean.clamp(min=1e-12).log()).sum()
    return 1 - entropy / math.log(max(2, len(mean)))
