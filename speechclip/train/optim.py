"""The optimiser and its learning rate: linear warm-up, then linear decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from speechclip.config import OptimConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]], config: OptimConfig, precision: str = "32-true"
) -> torch.optim.Adam:
    """Return Adam or AdamW with a fused kernel.

    torch's default copies all parameters several times in every update. This is most of the memory of a small batch.

    Args:
        parameters: the trained parameters, or the groups of :func:`parameter_groups`.
        config: settings of the optimiser.
        precision: Fabric's precision. With "16-mixed" torch's default is used, because Fabric cannot clip gradients
            that the fused kernel unscales.
    """
    algorithm = torch.optim.Adam if config.algorithm == "adam" else torch.optim.AdamW
    return algorithm(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=precision != "16-mixed"
    )


def parameter_groups(
    head: list[nn.Parameter], encoder: list[nn.Parameter], config: OptimConfig, encoder_lr: float
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Return the trained parameters for :func:`make_optimizer`, in two groups if a part of the encoder is trained.

    The key "lr_scale" of a group is multiplied with :func:`learning_rate`.

    Args:
        head: parameters of the head, the weighted sum and the loss.
        encoder: trained parameters of the speech encoder; may be empty.
        config: settings of the optimiser.
        encoder_lr: peak learning rate of the encoder.
    """
    if not encoder:
        return head
    return [{"params": head, "lr_scale": 1.0}, {"params": encoder, "lr_scale": encoder_lr / config.lr}]


def learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate of an update.

    The rate rises linearly to ``lr`` in update ``warmup_steps`` - 1, and falls linearly to ``final_lr`` in the last
    update, as in the published code.

    Args:
        step: number of the update, counted from 0.
        config: settings of the optimiser.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = config.max_steps - config.warmup_steps
    done = min(1.0, (step + 1 - config.warmup_steps) / span) if span else 1.0
    return config.lr + (config.final_lr - config.lr) * done
