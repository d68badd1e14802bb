"""The optimiser and its learning rate by steps: linear warm-up, linear decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from speechclip.config import OptimConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimConfig, precision: str = "32-true"
) -> torch.optim.Adam:
    """Adam or AdamW over the parameters, in one kernel.

    torch's default makes several copies of all of them in every update, which is most of a small batch's memory.
    precision: Fabric's; with "16-mixed" the default stays, since Fabric cannot clip what the kernel itself unscales.
    """
    algorithm = torch.optim.Adam if config.algorithm == "adam" else torch.optim.AdamW
    return algorithm(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=precision != "16-mixed"
    )


def learning_rate(step: int, config: OptimConfig) -> float:
    """The rate of update number ``step``, counted from 0.

    Rises linearly to ``lr`` over ``warmup_steps`` updates, then falls linearly to ``final_lr`` at ``max_steps``.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = config.max_steps - config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / span) if span else 1.0
    return config.lr + (config.final_lr - config.lr) * done
