"""Percentile bootstrap over clusters: all items of one image are drawn together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.data.mapped import new_array

LEVEL = 0.95
_BLOCK = 1 << 23  # draws in memory at a time in double precision: 64 MiB

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


class Bootstrap:
    """Resamples of clusters with replacement. All calls on one object use the same resamples.

    So the difference of two scores can be resampled as the two scores are. Equal seeds give equal resamples.

    Args:
        clusters: the cluster of each item, its image, [Q]. Captions of one image are not independent draws.
        n: number of resamples.
        seed: seed of the draws.
    Raises:
        ValueError: n is below 1, or clusters is empty.
    """

    def __init__(self, clusters: ArrayLike, n: int = 1000, seed: int = 0) -> None:
        if n < 1:
            raise ValueError(f"{n} resamples; an interval needs at least 1")
        index: Ints = np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)
        if not len(index):
            raise ValueError("nothing to resample")
        self._order = np.argsort(index, kind="stable")
        self._starts = np.flatnonzero(np.diff(index[self._order], prepend=-1))  # where each cluster begins
        self._size, self._n, self._seed = len(index), n, seed
        self._draws: NDArray[np.int16] | None = None

    def sums(self, columns: ArrayLike) -> Floats:
        """Return the sums of columns [Q, M] in every resample, [n, M]."""
        values = np.asarray(columns, dtype=np.float64)
        if values.ndim != 2 or len(values) != self._size:
            raise ValueError(f"columns {values.shape} do not fit the {self._size} items")
        sums = np.add.reduceat(values[self._order], self._starts, axis=0)  # [I, M]
        if self._draws is None:
            self._draws = self._draw()
        step = max(1, _BLOCK // len(sums))
        parts = [self._draws[at : at + step].astype(np.float64) @ sums for at in range(0, self._n, step)]
        return np.concatenate(parts)

    def _draw(self) -> NDArray[np.int16]:
        """Draw how often each cluster is in a resample, [n, I]."""
        clusters, generator = len(self._starts), np.random.default_rng(self._seed)
        draws = new_array((self._n, clusters), np.int16)  # in a temporary map if it is large
        step = max(1, _BLOCK // clusters)
        for at in range(0, self._n, step):
            size = min(step, self._n - at)
            draws[at : at + size] = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=size)
        return draws


def interval(values: ArrayLike, level: float = LEVEL) -> Floats:
    """Return the percentile interval of each column of resampled values.

    Args:
        values: [n, M]. NaN is ignored.
        level: the share of the resamples inside the interval, between 0 and 1.
    Returns:
        low and high ends, [2, M].
    """
    tail = 50.0 * (1.0 - level)
    ends: Floats = np.nanpercentile(np.asarray(values), [tail, 100.0 - tail], axis=0)
    return ends
