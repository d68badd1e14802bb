"""The learning rate by steps: linear warm-up, linear decay."""

from __future__ import annotations

from speechclip.config import OptimConfig


def learning_rate(step: int, config: OptimConfig) -> float:
    """The rate of update number ``step``, counted from 0.

    Rises linearly to ``lr`` over ``warmup_steps`` updates, then falls linearly to ``final_lr`` at ``max_steps``.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = config.max_steps - config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / span) if span else 1.0
    return config.lr + (config.final_lr - config.lr) * done
