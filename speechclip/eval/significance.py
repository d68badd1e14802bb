"""Whether one run scores higher than another on the same items: a paired permutation test over images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.common.errors import UserError
from speechclip.common.files import replacing
from speechclip.data.embeddings import read_arrays
from speechclip.eval.bootstrap import Bootstrap, interval
from speechclip.eval.retrieval import gains_of

RESAMPLES = 1000  # of the interval of a difference
_BLOCK = 1 << 22  # signs drawn at a time

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
    """Differences of two runs' scores on the same items, and how easily chance would make them as large.

    The items of one image are no independent draws, so an image's are exchanged between the runs together: with n
    random choices of images to exchange, p = (1 + choices with at least as large a difference) / (1 + n), two-sided.

    Args:
        first, second: [Q, M], what each item adds to the sums behind the scores. clusters: [Q], the image of each.
        measure: sums [..., M] to scores [..., S], called `names`. n: choices. seed: of choices and resamples.
    Returns:
        by name {"first", "second", "difference", "ci95", "p"}; difference is first - second, ci95 its bootstrap
        interval over images, both runs resampled together.
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
    """p [S] of differences of at least the observed size under random exchanges of whole clusters."""
    index = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    apart = np.stack([np.bincount(index, weights=column) for column in (a - b).T], axis=1)  # [I, M]
    both = (a + b).sum(axis=0)
    generator = np.random.default_rng(seed)
    reached = np.zeros(len(observed))
    step = max(1, _BLOCK // len(apart))
    for start in range(0, n, step):
        signs = generator.integers(0, 2, size=(min(step, n - start), len(apart))) * 2.0 - 1.0
        moved = signs @ apart
        drawn = measure((both + moved) / 2) - measure((both - moved) / 2)
        reached += (np.abs(drawn) >= observed - 1e-9 * (1 + observed)).sum(axis=0)
    p: Floats = (1 + reached) / (1 + n)
    return p


def paired_test(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike, n: int = 10000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """:func:`paired_scores` of R@1, R@5, R@10 and MRR in percent, given ranks from 1, [Q], of the same queries."""
    a, b, c = np.asarray(first), np.asarray(second), np.asarray(clusters)
    if a.size == 0 or a.shape != b.shape or a.shape != c.shape or a.ndim != 1:
        raise ValueError(f"ranks {a.shape} and {b.shape} and clusters {c.shape} do not fit")
    names = list(gains_of(a))
    first_sums, second_sums = (np.stack([*gains_of(r).values(), np.ones(len(r))], axis=1) for r in (a, b))
    return paired_scores(first_sums, second_sums, c, lambda sums: 100 * sums[..., :-1] / sums[..., -1:], names, n, seed)


def save_ranks(path: Path, ranks: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], data: Mapping[str, str]) -> None:
    """Write ranks and images of the queries of every direction. data: fingerprints of what they were asked of."""
    arrays: dict[str, NDArray[Any]] = {"data": np.array(json.dumps(dict(data), sort_keys=True))}
    for name, (rank, image) in ranks.items():
        arrays |= {f"{name}/ranks": rank.astype(np.int32), f"{name}/images": image.astype(np.int32)}
    with replacing(path) as part:
        np.savez_compressed(part, allow_pickle=False, **arrays)


def compare_runs(first: Path, second: Path, n: int = 10000, seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """:func:`paired_test` for every direction that both ``ranks.npz`` have.

    Raises:
        UserError: a file that is missing or damaged, or ranks of other data.
    """
    one, other = _read(first), _read(second)
    if str(one["data"]) != str(other["data"]):
        raise UserError(f"{second}: scored on other data than {first}: the queries are not the same")
    found = {}
    for name in [key.removesuffix("/ranks") for key in one if key.endswith("/ranks") and key in other]:
        images = one[f"{name}/images"]
        if not np.array_equal(images, other.get(f"{name}/images", np.empty(0))):
            raise UserError(f"{second}: {name}: other queries than in {first}")
        found[name] = paired_test(one[f"{name}/ranks"], other[f"{name}/ranks"], images, n, seed)
    return found


def _read(path: Path) -> dict[str, NDArray[Any]]:
    content = read_arrays(path)
    if "data" not in content:
        raise UserError(f"{path}: no ranks of stage 4")
    return content
