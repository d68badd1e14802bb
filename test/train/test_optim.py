"""The optimiser and its learning rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechclip.config import OptimConfig
from speechclip.train.optim import learning_rate, make_optimizer

PLAIN = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("algorithm", PLAIN)
def test_fused_updates_equal_torchs_default(algorithm: str) -> None:
    config = OptimConfig(algorithm=algorithm, lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)  # type: ignore[arg-type]
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(7)]
    ours, plain = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizer = make_optimizer(ours, config)
    assert optimizer.defaults["fused"]
    other = PLAIN[algorithm](plain, lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    for _ in range(20):
        for one, two in zip(ours, plain):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        optimizer.step()
        other.step()
    for one, two, was in zip(ours, plain, start):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
        assert (one - was).abs().max() > 0.05


def test_optimizer_is_not_fused_with_a_gradient_scaler() -> None:
    assert not make_optimizer([nn.Parameter(torch.zeros(2))], OptimConfig(), "16-mixed").defaults["fused"]


def test_learning_rate_by_hand() -> None:
    config = OptimConfig(lr=8.0, final_lr=2.0, warmup_steps=4, max_steps=7)
    assert [learning_rate(step, config) for step in range(8)] == pytest.approx([2, 4, 6, 8, 6, 4, 2, 2])
    no_warmup = OptimConfig(lr=8.0, final_lr=0.0, warmup_steps=0, max_steps=4)
    assert [learning_rate(step, no_warmup) for step in range(5)] == pytest.approx([6, 4, 2, 0, 0])
    only_warmup = OptimConfig(lr=8.0, final_lr=1.0, warmup_steps=2, max_steps=2)
    assert [learning_rate(step, only_warmup) for step in range(3)] == pytest.approx([4, 8, 1])


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 2e-8), (4999, 1e-4), (5000, 9.99978e-5), (25000, 5.555778e-5), (49999, 1.000e-8), (50000, 1.000e-8)],
)
def test_learning_rate_equals_the_published_code(step: int, rate: float) -> None:
    assert learning_rate(step, OptimConfig()) == pytest.approx(rate, rel=5e-7)
