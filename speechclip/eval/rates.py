"""Means over the keywords of utterances, for each keyword number and for all, with intervals over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.eval.bootstrap import Bootstrap, interval

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class KeywordIndex:
    """Utterance and number of N keywords, ordered by utterance and number.

    Attributes:
        owner: the utterance of each keyword, [N].
        number: the number of each keyword in its utterance, from 0, [N].
        shape: (U, K), the number of utterances and the largest number of keywords.
    """

    owner: Ints
    number: Ints
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: ArrayLike) -> KeywordIndex:
        """Build from a mask [U, K].

        Raises:
            ValueError: no utterance has a keyword.
        """
        present = np.asarray(mask, dtype=bool)
        owner, number = np.nonzero(present)
        if not len(owner):
            raise ValueError("no utterance has a keyword")
        return cls(owner, number, (present.shape[0], present.shape[1]))

    @property
    def counts(self) -> Ints:
        """The number of keywords of each utterance, [U]."""
        return np.bincount(self.owner, minlength=self.shape[0])


class HitRates:
    """Means of keyword values as rows ``{"kw1": ..., "kw2": ..., "avg": ...}``.

    "avg" is the mean over all counted keywords, so a keyword number that few utterances have has a small weight. If
    every utterance has K keywords, it is the mean of kw1 to kwK, the "Avg" of the papers.

    Args:
        index: the keywords.
        bootstrap: resamples of the U utterances; None for no intervals.
    """

    def __init__(self, index: KeywordIndex, bootstrap: Bootstrap | None = None) -> None:
        self.index, self.bootstrap = index, bootstrap

    def row(self, values: ArrayLike, counted: ArrayLike, scale: float = 100.0) -> dict[str, float]:
        """Return the means of the values that count. Keyword numbers without a counted value are left out.

        Args:
            values: [N].
            counted: whether each value counts, [N].
            scale: factor of the means.
        Raises:
            ValueError: no value counts.
        """
        columns = self._columns(values, counted)
        means = _means(columns.sum(axis=0)[None])[0]
        if np.isnan(means[-1]):
            raise ValueError("no utterance has both a keyword and a gold subword")
        return {name: scale * float(means[at]) for at, name in self._names(means)}

    def scored(self, values: ArrayLike, counted: ArrayLike, scale: float = 100.0) -> dict[str, Any]:
        """Return :meth:`row` with "ci95", the 95% interval of each number. Without a bootstrap "ci95" is absent."""
        row: dict[str, Any] = self.row(values, counted, scale)
        if self.bootstrap is not None:
            resampled = _means(self.bootstrap.sums(self._columns(values, counted)))
            present = [at for at, _ in self._names(_means(self._columns(values, counted).sum(axis=0)[None])[0])]
            low, high = scale * interval(resampled[:, present])
            row["ci95"] = {name: [float(low[at]), float(high[at])] for at, name in enumerate(row)}
        return row

    def difference(self, first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]) -> dict[str, Any]:
        """Return the "avg" of the second (values, counted) minus the first in points, with its paired interval."""
        columns = [self._columns(*pair) for pair in (first, second)]
        one, other = (float(_means(part.sum(axis=0)[None])[0, -1]) for part in columns)
        row: dict[str, Any] = {"avg": 100.0 * (other - one)}
        if self.bootstrap is not None:
            drawn = [_means(self.bootstrap.sums(part))[:, -1] for part in columns]
            row["ci95"] = (100.0 * interval((drawn[1] - drawn[0])[:, None])[:, 0]).tolist()
        return row

    def _columns(self, values: ArrayLike, counted: ArrayLike) -> Floats:
        """Return [U, 2K]: the counted value of every keyword number, and whether it counts, 0 or 1."""
        use = np.asarray(counted, dtype=bool)
        at, keywords = (self.index.owner[use], self.index.number[use]), self.index.shape[1]
        columns = np.zeros((self.index.shape[0], 2 * keywords))
        columns[at] = np.asarray(values, dtype=np.float64)[use]
        columns[at[0], keywords + at[1]] = 1.0
        return columns

    @staticmethod
    def _names(means: Floats) -> list[tuple[int, str]]:
        """Return column and name of the means that exist."""
        names = [f"kw{k + 1}" for k in range(len(means) - 1)] + ["avg"]
        return [(at, name) for at, name in enumerate(names) if not np.isnan(means[at])]


def _means(sums: Floats) -> Floats:
    """Return the means [n, K + 1] of sums [n, 2K] of `HitRates._columns`; the mean of all is last. NaN for 0 / 0."""
    keywords = sums.shape[1] // 2
    value, count = (np.c_[part, part.sum(axis=1)] for part in (sums[:, :keywords], sums[:, keywords:]))
    return np.where(count > 0, value / np.maximum(count, 1), np.nan)
