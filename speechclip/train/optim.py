"""The optimiser and its learning rate: linear warm-up, then linear decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from speechclip.config import OptimConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimConfig, precision: str = "32-true"
) -> torch.optim.Adam:
    """Make a fused Adam or AdamW.

    torch's default copies all parameters several times in every update. With a small batch that is most of the memory.

    Args:
        parameters: the trained parameters.
        config: algorithm, learning rate, betas and weight decay.
        precision: Fabric's. "16-mixed" keeps torch's default: Fabric cannot clip gradients that the kernel unscales.
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
