"""The optimiser and its learning rate: linear warm-up, then linear decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from speechclip.config import OptimConfig


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction and with decoupled weight decay, as BERT, LXMERT and FaST-VGS were trained.

    Args:
        parameters: the trained parameters.
        lr: learning rate; the training loop sets it before each update.
        betas: decay rates of the two moving averages.
        eps: added to the root of the second average.
        weight_decay: share of a parameter that is added to its update.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]], *, lr: float, betas: tuple[float, float],
        eps: float, weight_decay: float,
    ) -> None:  # fmt: skip
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            first, second = group["betas"]
            used = [p for p in group["params"] if p.grad is not None]
            if not used:
                continue
            for p in used:
                if not self.state[p]:
                    self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            gradients = [p.grad for p in used]
            means = [self.state[p]["exp_avg"] for p in used]
            squares = [self.state[p]["exp_avg_sq"] for p in used]
            torch._foreach_lerp_(means, gradients, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
            updates = torch._foreach_sqrt(squares)
            torch._foreach_add_(updates, group["eps"])
            updates = torch._foreach_div(means, updates)
            torch._foreach_add_(updates, used, alpha=group["weight_decay"])
            torch._foreach_add_(used, updates, alpha=-group["lr"])


def make_optimizer(
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]], config: OptimConfig, precision: str = "32-true"
) -> torch.optim.Optimizer:
    """Return Adam or AdamW with a fused kernel, or BertAdam.

    torch's default copies all parameters several times in every update. This is most of the memory of a small batch.

    Args:
        parameters: the trained parameters, or the groups of :func:`parameter_groups`.
        config: settings of the optimiser.
        precision: Fabric's precision. With "16-mixed" torch's default is used, because Fabric cannot clip gradients
            that the fused kernel unscales.
    """
    if config.algorithm == "bert_adam":
        return BertAdam(
            parameters, lr=config.lr, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay
        )
    algorithm = torch.optim.Adam if config.algorithm == "adam" else torch.optim.AdamW
    return algorithm(
        parameters, lr=config.lr, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay,
        fused=precision != "16-mixed",
    )  # fmt: skip


def parameter_groups(
    parts: Iterable[tuple[list[nn.Parameter], float]], config: OptimConfig
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Return the trained parameters for :func:`make_optimizer`, in a group for each peak learning rate.

    The key "lr_scale" of a group is multiplied with :func:`learning_rate`.

    Args:
        parts: parameters and their peak learning rate. Parts without parameters are left out.
        config: settings of the optimiser.
    """
    groups = [{"params": parameters, "lr_scale": lr / config.lr} for parameters, lr in parts if parameters]
    if len(groups) == 1 and groups[0]["lr_scale"] == 1.0:
        return cast(list[nn.Parameter], groups[0]["params"])
    return groups


def learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate of an update.

    The rate rises linearly to ``lr`` in update ``warmup_steps`` - 1, and falls linearly to ``final_lr`` in the last
    update, as in the published code. With "bert_adam" both begin one update later: the rate of the first update is 0.

    Args:
        step: number of the update, counted from 0.
        config: settings of the optimiser.
    """
    at = step if config.algorithm == "bert_adam" else step + 1
    if step < config.warmup_steps:
        return config.lr * at / config.warmup_steps
    span = config.max_steps - config.warmup_steps
    done = min(1.0, (at - config.warmup_steps) / span) if span else 1.0
    return config.lr + (config.final_lr - config.lr) * done
