"""Paired permutation tests over images: does one run score higher than another on the same items?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.eval.bootstrap import Bootstrap, interval
from speechclip.eval.retrieval import gains_of

RESAMPLES = 1000  # of the interval of a difference
_BLOCK = 1 << 22  # signs in memory at a time

Floats = NDArray[np.floating[Any]]


def paired_scores(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike,
    measure: Callable[[Floats], Floats],
    names: Sequence[str],
    n: int = 10000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Test the differences of the scores of two runs on the same items.

    The items of one image are not independent, so all items of an image are exchanged between the runs together. With n
    random choices of images to exchange, p = (1 + choices with at least as large a difference) / (1 + n), two-sided.

    Args:
        first: what each item adds to the sums behind the scores, [Q, M].
        second: the same of the other run.
        clusters: the image of each item, [Q].
        measure: a function from sums [..., M] to scores [..., S].
        names: the names of the S scores.
        n: number of random choices.
        seed: seed of the choices and resamples.
    Returns:
        by name, {"first", "second", "difference", "ci95", "p"}. The difference is first - second. ci95 is its bootstrap
        interval over images, with both runs resampled together.
    Raises:
        ValueError: the arrays do not fit, or n is below 1.
    """
    a, b, c = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64), np.asarray(clusters)
    if a.size == 0 or a.shape != b.shape or a.ndim != 2 or c.shape != a.shape[:1]:
        raise ValueError(f"scores {a.shape} and {b.shape} and clusters {c.shape} do not fit")
    if n < 1:
        raise ValueError(f"{n} choices; at least 1 is needed")
    scores = np.stack([measure(a.sum(axis=0)), measure(b.sum(axis=0))])  # [2, S]
    difference = scores[0] - scores[1]
    p = _exchanged(a, b, c, measure, np.abs(difference), n, seed)
    drawn = Bootstrap(c, RESAMPLES, seed).sums(np.concatenate([a, b], axis=1))
    low, high = interval(measure(drawn[:, : a.shape[1]]) - measure(drawn[:, a.shape[1] :]))
    return {
        name: {
            "first": float(scores[0, at]), "second": float(scores[1, at]), "difference": float(difference[at]),
            "ci95": [float(low[at]), float(high[at])], "p": float(p[at]),
        }
        for at, name in enumerate(names)
    }  # fmt: skip


def _exchanged(
    a: Floats,
    b: Floats,
    clusters: NDArray[Any],
    measure: Callable[[Floats], Floats],
    observed: Floats,
    n: int,
    seed: int,
) -> Floats:
    """Return p [S]: how often a random exchange of whole clusters reaches the observed difference."""
    index = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    gap = np.stack([np.bincount(index, weights=column) for column in (a - b).T], axis=1)  # [I, M]
    both = (a + b).sum(axis=0)
    generator = np.random.default_rng(seed)
    reached = np.zeros(len(observed))
    step = max(1, _BLOCK // len(gap))
    for start in range(0, n, step):
        signs = generator.integers(0, 2, size=(min(step, n - start), len(gap))) * 2.0 - 1.0
        exchanged = signs @ gap
        drawn = measure((both + exchanged) / 2) - measure((both - exchanged) / 2)
        reached += (np.abs(drawn) >= observed - 1e-9 * (1 + observed)).sum(axis=0)
    p: Floats = (1 + reached) / (1 + n)
    return p


def paired_test(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike, n: int = 10000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return :func:`paired_scores` of R@1, R@5, R@10 and MRR in percent for ranks from 1, [Q], of the same queries."""
    a, b, c = np.asarray(first), np.asarray(second), np.asarray(clusters)
    if a.size == 0 or a.shape != b.shape or a.shape != c.shape or a.ndim != 1:
        raise ValueError(f"ranks {a.shape} and {b.shape} and clusters {c.shape} do not fit")
    names = list(gains_of(a))
    first_sums, second_sums = (np.stack([*gains_of(r).values(), np.ones(len(r))], axis=1) for r in (a, b))
    return paired_scores(first_sums, second_sums, c, lambda sums: 100 * sums[..., :-1] / sums[..., -1:], names, n, seed)
