"""Whether one run finds more than another on the same queries: a paired permutation test over images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.data.embeddings import read_arrays
from speechclip.errors import UserError
from speechclip.eval.retrieval import gains_of

_BLOCK = 1 << 22  # signs drawn at a time


def paired_test(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike, n: int = 10000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Differences of two runs' scores on the same queries, in points, and how easily chance would make them as large.

    The queries of one image are no independent draws, so an image's gains are exchanged between the runs together: with
    n random choices of images to exchange, p = (1 + choices with at least as large a difference) / (1 + n), two-sided.

    Args:
        first, second: ranks from 1, [Q]. clusters: [Q], the image of each query. n: choices. seed: of the choices.
    Returns:
        for R@1, R@5, R@10 and MRR: {"first", "second", "difference", "p"}, in percent; difference is first - second.
    """
    a, b, c = np.asarray(first), np.asarray(second), np.asarray(clusters)
    if a.size == 0 or a.shape != b.shape or a.shape != c.shape or a.ndim != 1:
        raise ValueError(f"ranks {a.shape} and {b.shape} and clusters {c.shape} do not fit")
    if n < 1:
        raise ValueError(f"{n} choices; at least 1 is needed")
    index = np.unique(c, return_inverse=True)[1].reshape(-1)
    others = gains_of(b)
    gains = {name: (gain, others[name]) for name, gain in gains_of(a).items()}
    sums = np.stack([np.bincount(index, weights=x - y) for x, y in gains.values()], axis=1)  # [I, 4]
    p = _exchanged(sums, n, seed)
    return {
        name: {
            "first": 100 * float(x.mean()), "second": 100 * float(y.mean()),
            "difference": 100 * float((x - y).mean()), "p": float(p[at]),
        }
        for at, (name, (x, y)) in enumerate(gains.items())
    }  # fmt: skip


def paired_means(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike, n: int = 10000, seed: int = 0
) -> dict[str, float]:
    """:func:`paired_test` of any score from 0 to 1 that two runs have for each of the same items, [Q] both.

    Returns {"first", "second", "difference", "p"}, the first three in percent.
    """
    a, b, c = np.asarray(first, dtype=float), np.asarray(second, dtype=float), np.asarray(clusters)
    if a.size == 0 or a.shape != b.shape or a.shape != c.shape or a.ndim != 1 or n < 1:
        raise ValueError(f"scores {a.shape} and {b.shape}, clusters {c.shape} and {n} choices do not fit")
    index = np.unique(c, return_inverse=True)[1].reshape(-1)
    sums = np.bincount(index, weights=a - b)[:, None]
    means = {"first": 100 * float(a.mean()), "second": 100 * float(b.mean()), "difference": 100 * float((a - b).mean())}
    return {**means, "p": float(_exchanged(sums, n, seed)[0])}


def _exchanged(sums: NDArray[Any], n: int, seed: int) -> NDArray[np.float64]:
    """p [M] of the total of the clusters' differences, [I, M], under random exchanges of whole clusters."""
    observed = np.abs(sums.sum(axis=0))
    generator = np.random.default_rng(seed)
    reached = np.zeros(sums.shape[1])
    step = max(1, _BLOCK // len(sums))
    for start in range(0, n, step):
        signs = generator.integers(0, 2, size=(min(step, n - start), len(sums))) * 2.0 - 1.0
        reached += (np.abs(signs @ sums) >= observed - 1e-9 * (1 + observed)).sum(axis=0)
    p: NDArray[np.float64] = (1 + reached) / (1 + n)
    return p


def save_ranks(path: Path, ranks: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], data: Mapping[str, str]) -> None:
    """Write ranks and images of the queries of every direction. data: fingerprints of what they were asked of."""
    arrays: dict[str, NDArray[Any]] = {"data": np.array(json.dumps(dict(data), sort_keys=True))}
    for name, (rank, image) in ranks.items():
        arrays |= {f"{name}/ranks": rank.astype(np.int32), f"{name}/images": image.astype(np.int32)}
    part = path.with_name(f"{path.stem}.part.npz")
    np.savez_compressed(part, allow_pickle=False, **arrays)
    part.replace(path)


def compare_runs(first: Path, second: Path, n: int = 10000, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
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
    content = read_arrays(path, hint="stage 4 makes it")
    if "data" not in content:
        raise UserError(f"{path}: no ranks of stage 4")
    return content
