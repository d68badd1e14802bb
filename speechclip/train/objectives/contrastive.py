"""The contrastive loss with a queue of negatives and with soft targets.

Source of the queue and of momentum distillation: Zhou and Li 2024, arXiv 2408.13119 ("SIC"). Its code is not public.
We read its abstract and summaries of it, so the details are our interpretation. They follow Li et al. 2021 (ALBEF),
with two differences, because images are frozen here: the images of a batch and of the queue are CLIP's embeddings, and
the utterances of the batch itself keep their gradient in both directions. Only those of the queue come from the
momentum model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechclip.train.objectives.queue import QueueRows


def distilled_contrastive_loss(
    speech: Tensor, target: Tensor, groups: Tensor, scale: Tensor | float, *, queue: QueueRows | None = None,
    gallery: Tensor | None = None, teacher: Tensor | None = None, share: float = 0.0, image_share: float = 0.0,
    image_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Return the symmetric cross-entropy of a batch, with the rows of the queue as negatives and with soft targets.

    The target distribution of a row is (1 - share - image_share) x its own pair + share x the momentum model's
    distribution + image_share x the softmax of the cosines between the images. Pairs of the same image, except a row's
    own pair, take no part.

    Args:
        speech: [B, J], L2-normalised.
        target: [B, J], L2-normalised; row i belongs to row i of ``speech``.
        groups: [B] int, the image of each pair.
        scale: 1 / temperature, for ``speech`` and for ``teacher``.
        queue: further negatives; None for none.
        gallery: [I, J], embeddings of all images by their number, L2-normalised. Those that are neither in the batch
            nor in the queue are further negatives of the utterances; None for none.
        teacher: [B, J], embeddings of the same utterances by the momentum model; not needed if ``share`` is 0.
        share: of the momentum model, in [0, 1].
        image_share: of the image distribution, in [0, 1].
        image_scale: 1 / temperature of the image distribution.

    Returns:
        The mean of both directions, a scalar.
    """
    with torch.autocast(speech.device.type, enabled=False):
        speech, target = speech.float(), target.float()
        images, spoken, others = target, speech, groups
        if queue is not None:
            images, spoken = torch.cat([target, queue.images]), torch.cat([speech, queue.speech])
            others = torch.cat([groups, queue.groups])
        own, hidden = own_image, hidden_image = _own_and_hidden(groups, others)
        if gallery is not None:
            absent = torch.ones(len(gallery), device=groups.device, dtype=torch.bool)
            absent[others] = False
            images = torch.cat([images, gallery[absent].float()])
            own_image, hidden_image = _own_and_hidden(groups, torch.cat([others, absent.nonzero()[:, 0]]))
        to_image, to_speech = speech @ images.T * scale, target @ spoken.T * scale
        with torch.no_grad():
            given = 1 - share - image_share
            soft_image, soft_speech = given * own_image, given * own
            if share:
                assert teacher is not None
                taught = teacher.float() if queue is None else torch.cat([teacher.float(), queue.speech])
                soft_image = soft_image + share * _distribution(teacher.float() @ images.T * scale, hidden_image)
                soft_speech = soft_speech + share * _distribution(target @ taught.T * scale, hidden)
            if image_share:
                near = target @ images.T * image_scale
                soft_image = soft_image + image_share * _distribution(near, hidden_image)
                soft_speech = soft_speech + image_share * _distribution(near[:, : len(others)], hidden)
        rows = _cross_entropy(to_image, soft_image, hidden_image)
        return (rows + _cross_entropy(to_speech, soft_speech, hidden)) / 2


def _own_and_hidden(groups: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks [B, M]: the own pair of each row, and the other pairs of the same image."""
    own = torch.eye(len(groups), len(others), device=groups.device, dtype=torch.bool)
    return own, (groups[:, None] == others[None, :]) & ~own


def _distribution(logits: Tensor, hidden: Tensor) -> Tensor:
    """Return the softmax over the entries [N, M] that are not hidden."""
    return logits.masked_fill(hidden, float("-inf")).softmax(dim=1)


def _cross_entropy(logits: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean over rows of the cross-entropy with target distributions [N, M]."""
    losses = -logits.masked_fill(hidden, float("-inf")).log_softmax(dim=1).masked_fill(hidden, 0.0) * targets
    return losses.sum(dim=1).mean()
