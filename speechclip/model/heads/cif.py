"""Continuous integrate-and-fire: cuts an utterance into as many weighted segments as it needs (Wang et al. 2024).

A weight alpha in (0, 1) for every frame is summed up along time; each time the sum passes a whole number, a segment
ends and its weighted sum of frames is a keyword. A frame in which the sum passes a whole number belongs to both
neighbours, in parts; one with a weight above 1 may hold several segments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Fired(NamedTuple):
    """Segments of a batch, at most K an utterance.

    vectors: [B, K, d] weighted sums of frames, zero where there is no segment. weights: [B, K, T] of each frame in each
    segment. mask: [B, K] bool, the segments there are. segments: [B, K, 2] start and end in frames, with fractions.
    quantity_loss: mean absolute difference of the sum of unscaled alpha and the target count, a scalar.
    """

    vectors: Tensor
    weights: Tensor
    mask: Tensor
    segments: Tensor
    quantity_loss: Tensor


def integrate(alpha: Tensor, count: int) -> Tensor:
    """Weights of every frame in the first ``count`` segments: alpha [B, T] -> [B, count, T].

    Segment k holds what the running sum of alpha passes between k and k + 1.
    """
    levels = torch.arange(count, device=alpha.device, dtype=alpha.dtype)
    passed = (alpha.cumsum(dim=1)[:, None] - levels[None, :, None]).clamp(0, 1)  # [B, count, T]
    return passed.diff(dim=2, prepend=torch.zeros_like(passed[..., :1]))


def crossings(alpha: Tensor, frames: Tensor, count: int) -> Tensor:
    """When the running sum of alpha [B, T] passes 0, 1, ..., ``count``: [B, count + 1] in frames, with fractions.

    frames: [B], the end of each utterance, which stands where a number is not reached.
    """
    total = alpha.detach().cumsum(dim=1)
    levels = torch.arange(count + 1, device=alpha.device, dtype=alpha.dtype).expand(len(alpha), -1).contiguous()
    at = torch.searchsorted(total, levels).clamp(max=alpha.shape[1] - 1)  # the frame in which each is reached
    weight = alpha.detach().gather(1, at)
    within = (levels - (total.gather(1, at) - weight)) / weight.clamp(min=torch.finfo(alpha.dtype).tiny)
    return (at + within.clamp(0, 1)).minimum(frames[:, None].to(alpha.dtype))


class IntegrateAndFire(nn.Module):
    """Predicts alpha (convolutions, Linear, sigmoid), integrates it, and fires where the sum passes a whole number.

    In training's first steps alpha is scaled so that exactly the target number of segments fires; a rest that does not
    reach 1 is dropped in training, and in evaluation fires, scaled up to 1, where it is at least ``tail``. An utterance
    whose alpha sums to less than 1 has one segment, of what there is. Padding never fires, nor is it seen by the
    convolution (the published code lets it see the padded frames' states, so that an utterance depends on its batch).

    Args:
        dim: d. frames_per_keyword: the target count is round(frames / this), half to even, and at least 1.
        layers: convolutions, each followed by dropout and ReLU. width: of a convolution, odd. dropout: there, and
        before the Linear. scaling_steps: training steps with scaling. tail: least rest that fires. most: segments an
        utterance can have.
    """

    def __init__(
        self, dim: int, *, frames_per_keyword: float = 20.0, layers: int = 1, width: int = 3, dropout: float = 0.5,
        scaling_steps: int = 5000, tail: float = 0.5, most: int = 75,
    ) -> None:  # fmt: skip
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, dim, width, padding=width // 2) for _ in range(layers))
        self.weight = nn.Linear(dim, 1)
        self.dropout, self.scaling_steps = dropout, scaling_steps
        self.frames_per_keyword, self.tail, self.most = frames_per_keyword, tail, most
        self.step = 0

    def alpha(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Weights of the frames before scaling: [B, T, d], [B, T] bool -> [B, T] double, zero at padding."""
        hidden, last = frames.transpose(1, 2), len(self.convolutions) - 1  # [B, d, T]
        for number, convolution in enumerate(self.convolutions):
            hidden = convolution(hidden.masked_fill(padding[:, None], 0.0)).relu()
            # one draw does for the dropout before the last ReLU and the one behind it, before the Linear
            rate = self.dropout if number < last else 1 - (1 - self.dropout) ** 2
            hidden = nn.functional.dropout(hidden, rate, self.training)
        logits = self.weight(hidden.transpose(1, 2)).squeeze(2)
        # in double: sums of hundreds of weights decide whether there is one keyword more
        return logits.double().sigmoid().masked_fill(padding, 0.0)

    def forward(self, frames: Tensor, padding: Tensor) -> Fired:
        """frames [B, T, d], padding [B, T] bool -> the segments."""
        lengths = (~padding).sum(dim=1)  # [B]
        target = (lengths / self.frames_per_keyword).round().clamp(min=1)
        with torch.autocast(frames.device.type, enabled=False):
            frames = frames if frames.dtype == torch.float64 else frames.float()
            alpha = self.alpha(frames, padding)
            total = alpha.sum(dim=1)
            quantity_loss = (total - target).abs().mean()
            if self.training and self.step < self.scaling_steps:
                alpha = alpha * (target / total.clamp(min=torch.finfo(alpha.dtype).tiny))[:, None]
                counts = target.long().clamp(max=self.most)
            else:
                counts = total.detach().floor().long().clamp(1, self.most)
            rest = alpha.detach().sum(dim=1) - counts
            ends = torch.zeros_like(counts, dtype=torch.bool)  # whose tail fires
            if not self.training:
                ends = (rest >= self.tail) & (counts < self.most)
                counts = counts + ends
            longest = int(counts.max())
            weights = integrate(alpha, longest)
            mask = torch.arange(longest, device=counts.device)[None, :] < counts[:, None]
            last = torch.arange(longest, device=counts.device)[None, :] == counts[:, None] - 1
            raised = torch.where(last & ends[:, None], 1 / rest.clamp(min=self.tail)[:, None], 1.0)
            weights = (weights * raised[:, :, None]).masked_fill(~mask[:, :, None], 0.0)
            passed = crossings(alpha, lengths, longest)
            segments = torch.stack([passed[:, :-1], passed[:, 1:]], dim=2).masked_fill(~mask[:, :, None], 0.0)
            vectors = weights.to(frames.dtype) @ frames
        return Fired(vectors, weights.float(), mask, segments.float(), quantity_loss.to(vectors.dtype))
