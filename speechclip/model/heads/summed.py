"""Two parallel heads in one: the sum of the [CLS] embedding and the pooled embedding. It is our addition.

Each of the two embeddings has its own loss, so they make different mistakes, and their sum makes fewer.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from speechclip.model.heads.base import PARALLEL, Head, HeadOutput


class SummedHead(Head):
    """The parallel head with ``pooling: both``: the mean of the L2-normalised embeddings of two heads.

    Args:
        first: its states at the frames and its attention are those of this head.
        second: another head of the parallel branch, with the same width of the embedding.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL,)

    def __init__(self, first: Head, second: Head) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute one embedding per utterance, and its two parts for their losses. See :class:`Head`."""
        first, second = self.first(frames, padding), self.second(frames, padding)
        parts = (first.embedding, second.embedding)
        mean = (normalize(parts[0].float(), dim=-1) + normalize(parts[1].float(), dim=-1)) / 2
        return HeadOutput(mean, None, attention=first.attention, parts=parts)

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return those of the first head. See :class:`Head`."""
        return self.first.frame_states(frames, padding)
