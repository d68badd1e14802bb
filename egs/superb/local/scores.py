"""The score of a task in the results of its runs: the order of learning rates, and the mean of folds."""

from __future__ import annotations

import math
import statistics
from typing import Any

from tasks import Task

from speechclip.common.errors import UserError


def average_folds(task: Task, results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the results of the folds of a learning rate as one: the means of scores and layer weights.

    Args:
        task: the task.
        results: the result of each fold, by its number. A task without folds has only fold 0.

    Returns:
        A result. "folds" has the score of each fold by its number, and "step" the steps in that order. For a task
        without folds they are {} and the step.
    """
    parts = list(results.values())
    if task.folds == 1:
        return {**parts[0], "folds": {}}
    means = {
        kind: {
            key: statistics.fmean(float(_flat(part[kind])[key]) for part in parts)
            for key, value in _flat(parts[0][kind]).items() if isinstance(value, int | float)
        }
        for kind in ("valid", "test")
    }  # fmt: skip
    return {
        **parts[0], **means, "step": [part["step"] for part in parts],
        "layer_weights": [statistics.fmean(shares) for shares in zip(*(part["layer_weights"] for part in parts))],
        "folds": {str(fold): score(task, part["test"]) for fold, part in results.items()},
    }  # fmt: skip


def rank(task: Task, result: dict[str, Any]) -> tuple[float, float, float]:
    """Return the sort key of a result, lower is better: metric, loss on validation, learning rate."""
    value = float(result["valid"][task.valid_metric]) if task.valid_metric else score(task, result["test"])
    loss = float(result["valid"].get("loss", math.inf))
    first, second = (math.inf if math.isnan(x) else x for x in (-value if task.higher_better else value, loss))
    return first, second, result["lr"]


def score(task: Task, test: dict[str, Any]) -> float:
    """Return the task's metric from s3prl's result. Upper and lower case of its name do not matter.

    Raises:
        UserError: the result lacks the metric.
    """
    found = {key.lower(): value for key, value in _flat(test).items()}
    if task.metric.lower() not in found:
        raise UserError(f"result.yaml: lacks {task.metric}. It holds {', '.join(found)}.")
    return float(found[task.metric.lower()])


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
