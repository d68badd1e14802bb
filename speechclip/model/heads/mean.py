"""The mean head: the mean of the frames and one Linear, the plainest trained baseline."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from speechclip.config import HeadConfig
from speechclip.model.dropout import Dropout
from speechclip.model.heads.base import PARALLEL, Head, HeadInputs, HeadOutput, register_head


class MeanHead(Head):
    """The mean of the valid frames passes a Linear.

    Args:
        dim: d, width of the speech features.
        joint_dim: width of the CLIP embedding.
        input_dropout: probability of dropout of the frames.
    """

    branches: ClassVar[tuple[str, ...]] = (PARALLEL,)

    def __init__(self, dim: int, joint_dim: int, *, input_dropout: float = 0.0) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, joint_dim)
        self.input_dropout = Dropout(input_dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """Compute one embedding per utterance. See :class:`Head`."""
        valid = (~padding).to(frames.dtype)  # [B, T]
        weights = valid / valid.sum(dim=1, keepdim=True)
        mean = (weights[:, None] @ self.input_dropout(frames))[:, 0]  # [B, d]
        return HeadOutput(self.projection(mean), None, attention=None if self.training else weights[:, None])

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the frames: the head has no layer of its own over them."""
        return frames


@register_head("mean", branches=MeanHead.branches)
def _build(settings: HeadConfig, inputs: HeadInputs) -> MeanHead:
    return MeanHead(inputs.dim, inputs.joint_dim, input_dropout=settings.input_dropout)
