"""A queue of the embeddings of earlier batches, which are further negatives (Zhou and Li 2024, arXiv 2408.13119)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class QueueRows(NamedTuple):
    """The filled rows of a queue.

    Attributes:
        speech: [Q, J], embeddings of utterances by the momentum model, L2-normalised.
        images: [Q, J], embeddings of their images.
        groups: [Q] int, their images.
    """

    speech: Tensor
    images: Tensor
    groups: Tensor


class EmbeddingQueue(nn.Module):
    """The newest embeddings in a ring. All processes push the same rows, so all queues are equal.

    Args:
        size: Q, rows of the ring.
        width: J, width of an embedding.
        branches: names of the branches that have embeddings of speech.
    """

    speech: Tensor
    images: Tensor
    groups: Tensor
    position: Tensor

    def __init__(self, size: int, width: int, branches: Sequence[str]) -> None:
        super().__init__()
        self.size, self.branches = size, tuple(branches)
        self.register_buffer("speech", torch.zeros(len(branches), size, width))
        self.register_buffer("images", torch.zeros(size, width))
        self.register_buffer("groups", torch.full((size,), -1))
        self.register_buffer("position", torch.tensor(0))

    def rows(self, branch: str) -> QueueRows:
        """Return copies of the filled rows."""
        filled = self.groups >= 0
        return QueueRows(self.speech[self.branches.index(branch)][filled], self.images[filled], self.groups[filled])

    @torch.no_grad()
    def push(self, speech: Mapping[str, Tensor], images: Tensor, groups: Tensor) -> None:
        """Replace the oldest rows. A batch that is larger than the queue leaves its last rows.

        Args:
            speech: [B, J] for each branch.
            images: [B, J].
            groups: [B] int, at least 0.
        """
        count = min(len(groups), self.size)
        at = (self.position + torch.arange(count, device=groups.device)) % self.size
        for number, branch in enumerate(self.branches):
            self.speech[number, at] = speech[branch][-count:].to(self.speech.dtype)
        self.images[at] = images[-count:].to(self.images.dtype)
        self.groups[at] = groups[-count:]
        self.position.copy_((self.position + count) % self.size)
