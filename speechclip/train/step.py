"""One training step: from a batch to its loss, over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from speechclip.config import Config
from speechclip.data.dataset import Batch
from speechclip.data.regions import Regions
from speechclip.model.cross_modal import score_all_pairs
from speechclip.model.heads.base import CASCADED, PARALLEL, SpeechOutput
from speechclip.model.heads.fast_vgs import FastVgsHead
from speechclip.model.heads.keyword_head import KeywordHead
from speechclip.model.keyword_losses import repetition, uncovered, usage
from speechclip.model.losses import margin_loss, similar_parts
from speechclip.model.network import SpeechNetwork
from speechclip.train.objectives.combined import Objectives


class TrainBatch:
    """The input of a training step.

    This is a plain class on purpose. Fabric converts tensors and named tuples to the training precision when they
    enter a module, but waveforms, stored hidden states and targets must arrive unrounded.

    Args:
        batch: B utterances.
        targets: [B, J], L2-normalised.
        groups: [B] int, the image of each utterance.
        regions: of the image of each utterance, for the head fast_vgs; else None.
        step: number of the update, from 0.
    """

    def __init__(
        self, batch: Batch, targets: Tensor, groups: Tensor, regions: Regions | None = None, step: int = 0
    ) -> None:
        self.batch, self.targets, self.groups, self.regions, self.step = batch, targets, groups, regions, step


class LossStep(nn.Module):
    """The network and its loss as one module, so that DistributedDataParallel sees every trained parameter in use.

    Several processes gather their embeddings with gradients. The loss is that of the global batch with all its
    negatives, also if the processes have unequal shares of the batch.

    Args:
        model: the network.
        config: the whole configuration.
        fabric: launched.
        objectives: further objectives; None for none.
    """

    def __init__(
        self, model: SpeechNetwork, config: Config, fabric: Fabric, objectives: Objectives | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = objectives
        if objectives is not None:  # equal in all processes; DistributedDataParallel would send them in every step
            names = [f"objectives.{name}" for name, _ in objectives.named_buffers()]
            self._ddp_params_and_buffers_to_ignore = names
        self._config = config
        self._fabric = fabric

    def forward(self, train_batch: TrainBatch) -> Tensor:
        """Return the loss of a batch, a scalar."""
        batch, targets, groups = train_batch.batch, train_batch.targets, train_batch.groups
        objectives, own, own_groups, taught = self.objectives, targets, groups, {}
        if objectives is not None:
            taught = objectives.teach(self.model, batch, self._gathered)
        output: SpeechOutput = self.model(batch)
        if train_batch.regions is not None:
            return self._region_loss(output, train_batch.regions, groups, train_batch.step)
        world = self._fabric.world_size
        # Gradients are averaged over processes, whatever the share of each: undo that.
        share = len(groups) * world / self._config.data.batch_size if world > 1 else 1.0
        if world > 1:
            targets, groups = self._gather(targets), self._gather(groups)
        weights = self._config.model.loss
        total = 0.0 if output.quantity_loss is None else weights.quantity_weight * share * output.quantity_loss
        total = total + self._keyword_losses(output, share)
        for name, embedding in output.branches.items():
            # The weights balance two branches. A single branch has weight 1.
            weight = {PARALLEL: weights.parallel_weight, CASCADED: weights.cascaded_weight}[name]
            weight = weight if len(output.branches) > 1 else 1.0
            parts = output.parts if name == PARALLEL and output.parts else (embedding,)
            for part in parts:
                speech = nn.functional.normalize(part.float(), dim=-1)
                if world > 1:
                    speech = self._gather(speech, sync_grads=True)
                if objectives is None:
                    loss = self.model.loss(speech, targets, groups)
                else:
                    loss = objectives.contrastive(
                        name, speech, targets, groups, scale=self.model.loss.scale, taught=taught, step=train_batch.step
                    )
                total = total + weight / len(parts) * loss
        if objectives is not None:
            scale = self.model.loss.scale.detach()
            total = total + share * objectives.pairs(output, own, own_groups, targets, groups, scale)
            total = total + self._mean_keyword_loss(output, targets, groups)
            order = self._batch_order().to(groups.device)  # the same rows leave the queue with any number of processes
            objectives.push({name: rows[order] for name, rows in taught.items()}, targets[order], groups[order])
        return cast(Tensor, total)

    def _mean_keyword_loss(self, output: SpeechOutput, targets: Tensor, groups: Tensor) -> Tensor | float:
        """Return the weighted contrastive loss on the mean keywords of the global batch; 0 if it is off."""
        assert self.objectives is not None
        speech = self.objectives.keywords(output)
        if speech is None:
            return 0.0
        if self._fabric.world_size > 1:
            speech = self._gather(speech, sync_grads=True)
        loss: Tensor = self.model.loss(speech, targets, groups)
        return self.objectives.settings.keyword_weight * loss

    def _keyword_losses(self, output: SpeechOutput, share: float) -> Tensor | float:
        """Return the weighted losses on repeated keywords and on subwords without use.

        Args:
            output: of the network.
            share: factor of means over the utterances of this process.
        """
        weights, keywords = self._config.model.loss, output.keywords
        total: Tensor | float = 0.0
        if keywords is None or keywords.probabilities is None:
            return total
        if weights.diversity_weight:
            total = total + weights.diversity_weight * share * repetition(keywords.probabilities, keywords.mask)
        if weights.coverage_weight:
            used = usage(keywords.probabilities, keywords.mask)
            if self._fabric.world_size > 1:
                used = self._gather(used, sync_grads=True)
            head = self.model.head
            assert isinstance(head, KeywordHead)
            total = total + weights.coverage_weight * uncovered(used, head.quantizer.valid_mask)
        return total

    def _region_loss(self, output: SpeechOutput, regions: Regions, groups: Tensor, step: int) -> Tensor:
        """Return the weighted losses on the coarse and fine scores of all pairs of the global batch.

        Each process scores its utterances with all images. So the cross-modal layers of a pair run once.
        """
        head, settings = self.model.head, self._config.model.loss
        assert isinstance(head, FastVgsHead) and output.sequence is not None and output.valid is not None
        image, target = head.image(regions)
        speech = output.embedding
        if self._fabric.world_size > 1:
            image, target, speech = (self._gather(part, sync_grads=True) for part in (image, target, speech))
            groups = self._gather(groups)
        with torch.autocast(speech.device.type, enabled=False):
            coarse = speech.float() @ target.float().T
        order = self._parts_order(coarse.detach(), groups)
        loss = settings.fine_weight * self._fine_loss(output.sequence, output.valid, image, groups, order)
        weight, final = settings.coarse_weight, settings.coarse_final_weight
        if final is not None:
            weight += (final - weight) * min(1.0, step / (settings.coarse_steps or self._config.optim.max_steps))
        return loss + weight * margin_loss(coarse, groups, settings.margin)

    def _parts_order(self, coarse: Tensor, groups: Tensor) -> Tensor:
        """Return the gathered rows in the order in which they are cut into parts, [B]; equal in all processes.

        Args:
            coarse: [B, B], scores of the gathered rows, without gradients.
            groups: [B] int, their images.
        """
        head = self.model.head
        assert isinstance(head, FastVgsHead)
        order = self._batch_order().to(groups.device)
        if head.settings.fine_parts == "similar":
            order = similar_parts(coarse, groups, order, head.settings.fine_batch)
            order = self._fabric.broadcast(order) if self._fabric.world_size > 1 else order  # devices round differently
        return order

    def _fine_loss(self, speech: Tensor, valid: Tensor, images: Tensor, groups: Tensor, order: Tensor) -> Tensor:
        """Return the loss on the fine scores of all pairs of each part of the global batch, the mean over the parts.

        Args:
            speech: [b, T, d], of the utterances of this process.
            valid: [b, T] bool.
            images: [B, R, d], of the global batch, in order of rank.
            groups: [B] int, their images.
            order: [B], of :meth:`_parts_order`.
        """
        head, rank, world = self.model.head, self._fabric.global_rank, self._fabric.world_size
        assert isinstance(head, FastVgsHead)
        batch, block = len(groups), head.settings.block
        size = head.settings.fine_batch or batch
        before = sum(len(range(other, batch, world)) for other in range(rank))
        part = (order.argsort() // size)[before : before + len(speech)]  # of each utterance of this process
        by_part = part.argsort(stable=True)
        own, pictures = part.bincount(minlength=-(-batch // size)).tolist(), images[order].split(size)
        recompute = len(part) * size > block  # else the pairs of all parts fit into memory
        fine = torch.cat(
            [
                score_all_pairs(head.scorer, *of_part, block, recompute)
                for of_part in zip(speech[by_part].split(own), valid[by_part].split(own), pictures)
                if len(of_part[0])
            ]
        )[by_part.argsort()]
        if world > 1:
            fine = self._gather(fine, sync_grads=True)
        parts = zip(fine[order].split(size), groups[order].split(size))
        return torch.stack([margin_loss(scores, of, self._config.model.loss.margin) for scores, of in parts]).mean()

    def _batch_order(self) -> Tensor:
        """Return the places of the gathered rows in the order of the global batch, [B]."""
        world, batch = self._fabric.world_size, self._config.data.batch_size
        return torch.cat([torch.arange(rank, batch, world) for rank in range(world)]).argsort()

    def _gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, without gradients."""
        return self._gather(rows) if self._fabric.world_size > 1 else rows

    def _gather(self, rows: Tensor, sync_grads: bool = False) -> Tensor:
        """Return the rows [b, ...] of all processes in order of rank: [B, ...]. Shares may differ by one row."""
        world, batch = self._fabric.world_size, self._config.data.batch_size
        return gather_rows(self._fabric, rows, [len(range(rank, batch, world)) for rank in range(world)], sync_grads)


def gather_rows(fabric: Fabric, rows: Tensor, sizes: Sequence[int], sync_grads: bool = False) -> Tensor:
    """Return the rows of all processes in order of rank: [B, ...].

    Args:
        fabric: launched.
        rows: [b, ...], of this process.
        sizes: b of every process.
        sync_grads: let gradients flow back to the other processes.
    """
    if len(sizes) == 1:
        return rows
    longest = max(sizes)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    every = cast(Tensor, fabric.all_gather(padded, sync_grads=sync_grads)).flatten(0, 1)
    if min(sizes) == longest:
        return every
    return torch.cat([every[rank * longest :][:size] for rank, size in enumerate(sizes)])
