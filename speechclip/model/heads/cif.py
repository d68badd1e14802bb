"""Continuous integrate-and-fire (CIF): it cuts an utterance into a predicted number of segments (Wang et al. 2024).

Every frame gets a weight alpha in (0, 1). The weights are summed along time. Each time the sum passes a whole number, a
segment ends ("fires"), and its weighted sum of frames becomes a keyword. A frame at which the sum passes a whole number
is divided between both segments. A frame with a weight above 1 can hold several segments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechclip.model.dropout import dropout
from speechclip.model.heads.changes import change_curve, change_points, scale_segments


class Fired(NamedTuple):
    """Segments of a batch, at most K per utterance.

    Attributes:
        vectors: [B, K, d], weighted sums of frames; zero outside ``mask``.
        weights: [B, K, T], weight of each frame in each segment.
        mask: [B, K] bool, True for segments that exist.
        segments: [B, K, 2], start and end in frames, with fractions.
        quantity_loss: scalar, mean absolute difference between the sum of unscaled alpha and the target count.
    """

    vectors: Tensor
    weights: Tensor
    mask: Tensor
    segments: Tensor
    quantity_loss: Tensor


def integrate(alpha: Tensor, count: int) -> Tensor:
    """Return the weight of every frame in each of the first segments.

    Segment k takes the part of the running sum of alpha between k and k + 1.

    Args:
        alpha: [B, T].
        count: number of segments.

    Returns:
        [B, count, T].
    """
    levels = torch.arange(count, device=alpha.device, dtype=alpha.dtype)
    passed = (alpha.cumsum(dim=1)[:, None] - levels[None, :, None]).clamp(0, 1)  # [B, count, T]
    return passed.diff(dim=2, prepend=torch.zeros_like(passed[..., :1]))


def crossings(alpha: Tensor, frames: Tensor, count: int) -> Tensor:
    """Return the times at which the running sum of alpha passes 0, 1, ..., ``count``.

    Args:
        alpha: [B, T].
        frames: [B], the end of each utterance. It is returned for numbers that the sum does not reach.
        count: the last number.

    Returns:
        [B, count + 1] in frames, with fractions.
    """
    total = alpha.detach().cumsum(dim=1)
    levels = torch.arange(count + 1, device=alpha.device, dtype=alpha.dtype).expand(len(alpha), -1).contiguous()
    at = torch.searchsorted(total, levels).clamp(max=alpha.shape[1] - 1)  # the frame in which each is reached
    weight = alpha.detach().gather(1, at)
    within = (levels - (total.gather(1, at) - weight)) / weight.clamp(min=torch.finfo(alpha.dtype).tiny)
    return (at + within.clamp(0, 1)).minimum(frames[:, None].to(alpha.dtype))


class IntegrateAndFire(nn.Module):
    """Predict alpha (convolutions, Linear, sigmoid), sum it up, and fire when the sum passes a whole number.

    In the first training steps alpha is scaled, so that exactly the target number of segments fires. Training drops a
    tail that does not reach 1. In evaluation a tail of at least ``tail`` fires, scaled up to 1. If alpha sums to less
    than 1, the whole utterance is one segment. Padding never fires, and the convolution does not see it. (In the
    published code it sees the states of padded frames, so the result depends on the batch.)

    With ``changes`` the segments come from the data, in training and in evaluation: they begin at the highest peaks of
    the change between the frames below the head. Alpha is scaled to a sum of 1 in every segment, so that it fires at
    the end of the segment. Alpha then decides which frames of a segment count, and no longer where it ends. This is not
    part of the published model.

    Args:
        dim: d, width of the frames.
        frames_per_keyword: the target count is round(frames / frames_per_keyword), half to even, and at least 1.
        layers: number of convolutions, each followed by dropout and ReLU.
        width: kernel size of a convolution, odd.
        dropout: probability of dropout after each convolution and before the Linear.
        scaling_steps: number of training steps in which alpha is scaled.
        tail: smallest tail that fires.
        most: largest number of segments of an utterance.
        changes: window and distance of :func:`speechclip.model.heads.changes.change_points`; None for alpha alone.
    """

    def __init__(
        self, dim: int, *, frames_per_keyword: float = 20.0, layers: int = 1, width: int = 3, dropout: float = 0.5,
        scaling_steps: int = 5000, tail: float = 0.5, most: int = 75,
        changes: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, dim, width, padding=width // 2) for _ in range(layers))
        self.weight = nn.Linear(dim, 1)
        self.dropout, self.scaling_steps = dropout, scaling_steps
        self.frames_per_keyword, self.tail, self.most = frames_per_keyword, tail, most
        self.changes = changes
        self.step = 0

    def alpha(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the weights of frames [B, T, d] before scaling, [B, T] double; zero at padding [B, T] bool."""
        hidden, last = frames.transpose(1, 2), len(self.convolutions) - 1  # [B, d, T]
        for number, convolution in enumerate(self.convolutions):
            hidden = convolution(hidden.masked_fill(padding[:, None], 0.0)).relu()
            # One draw replaces two: dropout before the last ReLU and dropout before the Linear.
            rate = self.dropout if number < last else 1 - (1 - self.dropout) ** 2
            hidden = dropout(hidden, rate, self.training)
        logits = self.weight(hidden.transpose(1, 2)).squeeze(2)
        # In double precision: the number of keywords depends on sums of hundreds of weights.
        return logits.double().sigmoid().masked_fill(padding, 0.0)

    def forward(self, frames: Tensor, padding: Tensor, below: Tensor | None = None) -> Fired:
        """Compute the segments of frames [B, T, d] with padding [B, T] bool.

        Args:
            frames: the states that are summed up.
            padding: True at frames that are padding.
            below: [B, T, d], frames below the head, for ``changes``; None for ``frames``.
        """
        lengths = (~padding).sum(dim=1)  # [B]
        target = (lengths / self.frames_per_keyword).round().clamp(min=1)
        with torch.autocast(frames.device.type, enabled=False):
            frames = frames if frames.dtype == torch.float64 else frames.float()
            alpha = self.alpha(frames, padding)
            total = alpha.sum(dim=1)
            quantity_loss = (total - target).abs().mean()
            if self.changes is not None:
                window, distance = self.changes
                curve = change_curve(frames if below is None else below, padding, window)
                starts = change_points(curve, target.long().clamp(max=self.most), distance)
                alpha, counts = scale_segments(alpha, starts), 1 + starts.sum(dim=1)
            elif self.training and self.step < self.scaling_steps:
                alpha = alpha * (target / total.clamp(min=torch.finfo(alpha.dtype).tiny))[:, None]
                counts = target.long().clamp(max=self.most)
            else:
                counts = total.detach().floor().long().clamp(1, self.most)
            rest = alpha.detach().sum(dim=1) - counts
            ends = torch.zeros_like(counts, dtype=torch.bool)  # True if the tail fires
            if not self.training and self.changes is None:
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
