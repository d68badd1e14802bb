"""Random changes of the input of the head in training: spans of frames, dimensions, noise. All are off by default."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechclip.model.dropout import dropout


class TimeMask(nn.Module):
    """Set random spans of frames to zero. Active in train mode only.

    Args:
        count: spans per utterance; 0 switches the mask off.
        longest: the longest span, in frames.
    """

    def __init__(self, count: int = 0, longest: int = 1) -> None:
        super().__init__()
        self.count, self.longest = count, longest

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """Mask speech features [B, T, d] of utterances with ``frames`` [B] valid frames."""
        if not self.training or not self.count:
            return states
        spans = random_spans(frames, states.shape[1], self.count, self.longest)
        return states.masked_fill(spans[:, :, None], 0.0)


def random_spans(frames: Tensor, width: int, count: int, longest: int) -> Tensor:
    """Return ``count`` random spans of 0 to ``longest`` frames per utterance.

    Args:
        frames: [B], valid frames of each utterance.
        width: T, frames of the padded batch.
        count: spans per utterance.
        longest: the longest span, in frames.

    Returns:
        [B, T] bool, True inside a span.
    """
    sizes = torch.randint(0, longest + 1, (len(frames), count))
    starts = (torch.rand(len(frames), count) * frames.cpu()[:, None]).long()
    at = torch.arange(width)[None, None, :]
    inside = (at >= starts[..., None]) & (at < (starts + sizes)[..., None])
    return inside.any(dim=1).to(frames.device)


class FeatureNoise(nn.Module):
    """Drop dimensions of whole utterances, and add Gaussian noise to every frame. Active in train mode only.

    Args:
        channel_dropout: probability that a dimension is 0 in all frames of an utterance. The others are scaled up.
        noise: standard deviation of the noise, as a multiple of the standard deviation of the frame's dimensions.
    """

    def __init__(self, channel_dropout: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.channel_dropout, self.noise = channel_dropout, noise

    def forward(self, states: Tensor) -> Tensor:
        """Change speech features [B, T, d]."""
        if not self.training:
            return states
        if self.channel_dropout:
            kept = states.new_ones(len(states), 1, states.shape[2])
            states = states * dropout(kept, self.channel_dropout)
        if self.noise:
            scale = self.noise * states.detach().std(dim=2, keepdim=True)
            states = states + scale * torch.randn_like(states)
        return states
