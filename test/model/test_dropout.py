"""Dropout on the CPU: the share of zeros, the scale, the gradient and the seed."""

from __future__ import annotations

import pytest
import torch

from speechclip.model.dropout import Dropout, dropout


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.9])
def test_dropout_zeroes_a_share_and_scales_the_rest(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.full((300, 1001), 2.0)  # no multiple of four
    out = dropout(x, probability)
    zeros = (out == 0).float()
    assert zeros.mean().item() == pytest.approx(probability, abs=3e-3)
    assert out[out != 0].unique().item() == pytest.approx(2 / (1 - probability), rel=1e-4)
    for place in range(4):  # each quarter of a drawn number decides alike, and alone
        assert zeros.flatten()[place::4].mean().item() == pytest.approx(probability, abs=6e-3)
    neighbours = torch.corrcoef(torch.stack([zeros.flatten()[:-1], zeros.flatten()[1:]]))
    assert abs(neighbours[0, 1].item()) < 0.01


def test_dropout_has_the_gradient_of_its_mask() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 3, requires_grad=True)
    out = dropout(x, 0.5)
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach())
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}


def test_dropout_follows_the_seed_and_the_mode() -> None:
    x, module = torch.randn(7, 5), Dropout(0.5)
    torch.manual_seed(1)
    first, other = module(x), module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first) and not torch.equal(other, first)
    assert module.eval()(x) is x and dropout(x, 0.5, training=False) is x
    assert torch.equal(dropout(x, 0.0), x) and not dropout(x, 1.0).any()
    assert dropout(x.to(torch.bfloat16), 0.5).dtype == torch.bfloat16
    assert dropout(torch.empty(0, 3), 0.5).shape == (0, 3)
