"""The optimiser and its learning rate."""

from __future__ import annotations

import numpy as np
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


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_bert_adam_equals_plain_arithmetic(weight_decay: float) -> None:
    lr, first, second, epsilon = 0.03, 0.8, 0.9, 1e-3
    random = np.random.default_rng(0)
    values = [random.standard_normal((4, 3)), random.standard_normal(5)]
    gradients = [[random.standard_normal(value.shape) for value in values] for _ in range(6)]
    parameters = [nn.Parameter(torch.from_numpy(value.copy())) for value in values]
    config = OptimConfig(
        algorithm="bert_adam", lr=lr, betas=(first, second), epsilon=epsilon, weight_decay=weight_decay
    )
    optimizer = make_optimizer(parameters, config)
    mean, square = ([np.zeros_like(value) for value in values] for _ in range(2))
    for step, rows in enumerate(gradients):
        rate = lr * (step + 1) / 6
        optimizer.param_groups[0]["lr"] = rate
        for at, gradient in enumerate(rows):
            parameters[at].grad = torch.from_numpy(gradient)
            mean[at] = first * mean[at] + (1 - first) * gradient
            square[at] = second * square[at] + (1 - second) * gradient**2
            # no bias correction, epsilon outside of the root, decay of the value before the update
            update = mean[at] / (np.sqrt(square[at]) + epsilon) + weight_decay * values[at]
            values[at] = values[at] - rate * update
        optimizer.step()
        for parameter, value in zip(parameters, values):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-12)


def test_bert_adam_leaves_parameters_without_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([used, unused], OptimConfig(algorithm="bert_adam", lr=0.1, weight_decay=0.5))
    used.grad = torch.ones(2)
    optimizer.step()
    assert unused.tolist() == [1, 1] and unused not in optimizer.state
    assert used.max() < 1


def test_bert_adam_resumes_exactly() -> None:
    config = OptimConfig(algorithm="bert_adam", lr=0.1, weight_decay=0.01)
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    whole, part = (nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer, half = make_optimizer([whole], config), make_optimizer([part], config)
    for step, gradient in enumerate(gradients):
        if step == 3:
            state = half.state_dict()
            half = make_optimizer([part], config)
            half.load_state_dict(state)
        whole.grad, part.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        half.step()
    assert torch.equal(whole, part)


def test_schedule_of_bert_adam_by_hand() -> None:
    config = OptimConfig(algorithm="bert_adam", lr=8.0, final_lr=0.0, warmup_steps=4, max_steps=8)
    assert [learning_rate(step, config) for step in range(9)] == pytest.approx([0, 2, 4, 6, 8, 6, 4, 2, 0])
    # max(0, (x - 1) / (w - 1)) with x = step / total and w = 0.1, times the peak, as published
    published = OptimConfig(algorithm="bert_adam", lr=1e-4, final_lr=0.0, warmup_steps=624, max_steps=6240)
    assert learning_rate(312, published) == pytest.approx(0.5e-4)
    assert learning_rate(3432, published) == pytest.approx(1e-4 * (0.55 - 1) / (0.1 - 1))
