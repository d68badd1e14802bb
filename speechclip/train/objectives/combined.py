"""All further objectives of a training run as one module, with their state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from speechclip.config import Config, ObjectivesConfig
from speechclip.data.dataset import Batch
from speechclip.model.heads.base import SpeechOutput
from speechclip.model.heads.factory import branches_of
from speechclip.model.heads.keyword_head import KeywordHead
from speechclip.model.network import SpeechNetwork
from speechclip.train.objectives.contrastive import distilled_contrastive_loss
from speechclip.train.objectives.momentum import MomentumModel
from speechclip.train.objectives.pairs import (
    CrossEncoder,
    SpeechTokens,
    denoising_loss,
    hard_negatives,
    matching_loss,
    pool_frames,
)
from speechclip.train.objectives.queue import EmbeddingQueue

Gather = Callable[[Tensor], Tensor]


class Objectives(nn.Module):
    """The queue, the momentum model, and the networks of matching and denoising. A checkpoint's ``last`` holds them.

    Args:
        settings: ``train.objectives``.
        model: the network.
        images: [I, J], embeddings of the training images, L2-normalised. They are copied if ``all_images`` is on.
    """

    gallery: Tensor | None

    def __init__(self, settings: ObjectivesConfig, model: SpeechNetwork, images: np.ndarray) -> None:
        super().__init__()
        self.settings = settings
        gallery = torch.from_numpy(np.array(images, dtype=np.float32)) if settings.all_images else None
        self.register_buffer("gallery", gallery, persistent=False)
        speech, joint = model.dimensions.speech, model.dimensions.joint
        branches = branches_of(model.config.head.name)
        self.queue = EmbeddingQueue(settings.queue, joint, branches) if settings.queue else None
        self.momentum = MomentumModel(model, settings.momentum) if settings.needs_momentum else None
        self.matching = CrossEncoder(speech, joint, 1) if settings.matching_weight else None
        self.denoiser = CrossEncoder(speech, joint, joint) if settings.denoising_weight else None
        self.keyword = nn.Linear(_subword_width(model), joint) if settings.keyword_weight else None

    def teach(self, model: SpeechNetwork, batch: Batch, gather: Gather) -> dict[str, Tensor]:
        """Update the momentum model, and return its embeddings [B, J] of the global batch; nothing without one."""
        if self.momentum is None:
            return {}
        self.momentum.update(model)
        return {name: gather(rows) for name, rows in self.momentum.embed(model, batch).items()}

    def contrastive(
        self, branch: str, speech: Tensor, targets: Tensor, groups: Tensor, *, scale: Tensor, taught: dict[str, Tensor],
        step: int,
    ) -> Tensor:  # fmt: skip
        """Return the contrastive loss of a branch on the global batch. See :func:`distilled_contrastive_loss`.

        Args:
            branch: its name.
            speech, targets: [B, J].
            groups: [B] int.
            scale: 1 / temperature.
            taught: the result of :meth:`teach`.
            step: number of the update, from 0. The soft targets gain their share in the first steps.
        """
        settings = self.settings
        rise = min(1.0, (step + 1) / settings.rise_steps) if settings.rise_steps else 1.0
        return distilled_contrastive_loss(
            speech, targets, groups, scale, queue=None if self.queue is None else self.queue.rows(branch),
            gallery=self.gallery, teacher=taught.get(branch), share=rise * settings.distillation,
            image_share=rise * settings.image_distillation, image_scale=1 / settings.image_temperature,
        )  # fmt: skip

    def pairs(
        self, output: SpeechOutput, own: Tensor, own_groups: Tensor, targets: Tensor, groups: Tensor, scale: Tensor
    ) -> Tensor:
        """Return the weighted losses on pairs, of this process's utterances.

        Args:
            output: of this process's utterances.
            own: [b, J], their images.
            own_groups: [b] int.
            targets: [B, J], images of the global batch.
            groups: [B] int.
            scale: 1 / temperature.
        """
        settings, total = self.settings, torch.zeros((), device=own.device)
        if self.matching is None and self.denoiser is None:
            return total
        assert output.mixed is not None
        embedding = nn.functional.normalize(output.embedding.float(), dim=-1)
        speech = SpeechTokens(embedding, *pool_frames(output.mixed, output.frames, settings.stride))
        if self.matching is not None:
            pool, pool_groups = targets, groups
            if self.queue is not None:
                rows = self.queue.rows(self.queue.branches[0])
                pool, pool_groups = torch.cat([targets, rows.images]), torch.cat([groups, rows.groups])
            negatives = hard_negatives(embedding, own, own_groups, pool, pool_groups, scale)
            total = total + settings.matching_weight * matching_loss(self.matching, speech, own, negatives)
        if self.denoiser is not None:
            loss = denoising_loss(self.denoiser, speech, own, settings.denoising_noise)
            total = total + settings.denoising_weight * loss
        return total

    def keywords(self, output: SpeechOutput) -> Tensor | None:
        """Return embeddings [b, J] from the mean keyword before quantisation, L2-normalised; None if this is off.

        The loss on them gives keywords a gradient that does not pass the quantiser and CLIP's text transformer.
        """
        if self.keyword is None:
            return None
        assert output.keywords is not None
        vectors, mask = output.keywords.vectors, output.keywords.mask[:, :, None]
        mean = (vectors * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return nn.functional.normalize(self.keyword(mean).float(), dim=-1)

    def push(self, taught: dict[str, Tensor], targets: Tensor, groups: Tensor) -> None:
        """Put the global batch into the queue."""
        if self.queue is not None:
            self.queue.push(taught, targets, groups)


def _subword_width(model: SpeechNetwork) -> int:
    head = model.head
    assert isinstance(head, KeywordHead)
    return head.quantizer.subword_embeddings.shape[1]


def make_objectives(config: Config, model: SpeechNetwork, images: np.ndarray) -> Objectives | None:
    """Return the further objectives of a run; None if all are off.

    Args:
        config: the whole configuration.
        model: the network.
        images: [I, J], embeddings of the training images, L2-normalised.
    """
    settings = config.train.objectives
    return Objectives(settings, model, images) if settings.active else None
