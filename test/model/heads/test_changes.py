"""Segments from changes of the speech: the curve and its peaks equal NumPy, and integrate-and-fire follows them."""

from __future__ import annotations

import numpy as np
import torch

from speechclip.model.heads.changes import change_curve, change_points, scale_segments
from speechclip.model.heads.cif import IntegrateAndFire

DIM = 8


def _batch(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(len(lengths), max(lengths), DIM, generator=generator)
    padding = torch.arange(max(lengths))[None, :] >= torch.tensor(lengths)[:, None]
    return frames, padding


def test_change_curve_equals_numpy() -> None:
    lengths = [14, 9, 3]
    frames, padding = _batch(lengths)
    curve = change_curve(frames, padding, 2)
    for row, length in enumerate(lengths):
        x = frames[row, :length].numpy().astype(np.float64)
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        for at in range(14):
            expected = 0.0
            if 2 <= at <= length - 2:
                before, after = x[at - 2 : at].mean(axis=0), x[at : at + 2].mean(axis=0)
                expected = 1 - before @ after / np.linalg.norm(before) / np.linalg.norm(after)
            assert abs(curve[row, at].item() - expected) < 1e-5


def test_change_points_takes_the_highest_peaks() -> None:
    change = torch.tensor([[0.0, 0.1, 0.9, 0.8, 0.1, 0.3, 0.1, 0.5, 0.0], [0.0] * 9])
    for count, expected in ((1, []), (2, [2]), (3, [2, 7]), (9, [2, 5, 7])):
        found = change_points(change, torch.tensor([count, count]), 1)
        assert found[0].nonzero()[:, 0].tolist() == expected
        assert not found[1].any()
    assert change_points(change, torch.tensor([9, 9]), 3)[0].nonzero()[:, 0].tolist() == [2, 7]


def test_scale_segments_sums_to_one() -> None:
    alpha = torch.tensor([[0.2, 0.6, 0.5, 0.5, 0.3, 0.0]])
    starts = torch.tensor([[False, False, True, False, True, False]])
    torch.testing.assert_close(scale_segments(alpha, starts), torch.tensor([[0.25, 0.75, 0.5, 0.5, 1.0, 0.0]]))


def test_integrate_and_fire_cuts_at_the_changes() -> None:
    """Three constant parts: segments end where the parts end, in training and in evaluation, whatever alpha is."""
    generator = torch.Generator().manual_seed(3)
    parts = torch.randn(3, DIM, generator=generator).repeat_interleave(torch.tensor([7, 11, 6]), dim=0)
    below = torch.cat([parts, torch.zeros(5, DIM)])[None]
    padding = torch.arange(29)[None, :] >= 24
    states = torch.randn(1, 29, DIM, generator=generator)
    torch.manual_seed(0)
    cif = IntegrateAndFire(DIM, frames_per_keyword=8.0, changes=(2, 3))
    for training in (True, False):
        fired = cif.train(training)(states, padding, below)
        torch.testing.assert_close(fired.segments[0], torch.tensor([[0.0, 7.0], [7.0, 18.0], [18.0, 24.0]]))
        torch.testing.assert_close(fired.weights[0].sum(dim=1), torch.ones(3))
        assert fired.mask.all()
    alone = cif.eval()(states[:, :24], padding[:, :24], below[:, :24])
    torch.testing.assert_close(alone.vectors, cif(states, padding, below).vectors)


def test_alpha_inside_a_segment_has_a_gradient() -> None:
    frames, padding = _batch([20, 12])
    cif = IntegrateAndFire(DIM, frames_per_keyword=5.0, changes=(1, 1), dropout=0.0)
    cif(frames, padding).vectors.square().sum().backward()
    assert cif.weight.weight.grad is not None and cif.weight.weight.grad.abs().sum() > 0
