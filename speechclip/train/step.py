"""One training step: from a batch to its loss, over all processes."""

from __future__ import annotations

from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from speechclip.config import Config
from speechclip.data.dataset import Batch
from speechclip.model.heads.base import CASCADED, PARALLEL, SpeechOutput
from speechclip.model.network import SpeechNetwork


class TrainBatch:
    """What a training step works on. A plain class: Fabric rounds tensors and named tuples of them to the training
    precision on their way into a module, and waveforms, stored states and targets have to arrive as they are.

    Args:
        batch: B utterances. targets: [B, J] L2-normalised. groups: [B] int, their images.
    """

    def __init__(self, batch: Batch, targets: Tensor, groups: Tensor) -> None:
        self.batch, self.targets, self.groups = batch, targets, groups


class LossStep(nn.Module):
    """From a batch to its loss, as one module, so that DistributedDataParallel sees every trained parameter used.

    With several processes the embeddings of all of them are gathered with their gradients: the loss is that of the
    global batch, negatives included, also where they share it unevenly.
    """

    def __init__(self, model: SpeechNetwork, config: Config, fabric: Fabric) -> None:
        super().__init__()
        self.model = model
        self._config = config
        self._fabric = fabric

    def forward(self, train_batch: TrainBatch) -> Tensor:
        """The loss of a batch, a scalar."""
        batch, targets, groups = train_batch.batch, train_batch.targets, train_batch.groups
        output: SpeechOutput = self.model(batch)
        world = self._fabric.world_size
        # gradients are averaged over processes, whatever each one's share
        share = len(groups) * world / self._config.data.batch_size if world > 1 else 1.0
        if world > 1:
            targets, groups = self._gather(targets), self._gather(groups)
        weights = self._config.model.loss
        total = 0.0 if output.quantity_loss is None else weights.quantity_weight * share * output.quantity_loss
        for name, embedding in output.branches.items():
            speech = nn.functional.normalize(embedding.float(), dim=-1)
            if world > 1:
                speech = self._gather(speech, sync_grads=True)
            # one branch is weighed against nothing but its quantity loss
            weight = {PARALLEL: weights.parallel_weight, CASCADED: weights.cascaded_weight}[name]
            weight = weight if len(output.branches) > 1 else 1.0
            total = total + weight * self.model.loss(speech, targets, groups)
        return cast(Tensor, total)

    def _gather(self, rows: Tensor, sync_grads: bool = False) -> Tensor:
        """Rows [b, ...] of every process, one after the other: [B, ...]. Some have one row less than others."""
        world, batch = self._fabric.world_size, self._config.data.batch_size
        longest = -(-batch // world)
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        every = cast(Tensor, self._fabric.all_gather(padded, sync_grads=sync_grads)).flatten(0, 1)
        if batch % world == 0:
            return every
        sizes = [len(range(rank, batch, world)) for rank in range(world)]
        return torch.cat([every[rank * longest :][:size] for rank, size in enumerate(sizes)])
