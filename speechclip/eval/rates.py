"""Means over the keywords of utterances, keyword by keyword and of all, with intervals over images."""

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
    """The N keywords of U utterances, at most K of one: utterance by utterance, in each by number.

    owner: [N] their utterances. number: [N], from 0. shape: (U, K).
    """

    owner: Ints
    number: Ints
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: ArrayLike) -> KeywordIndex:
        """From a mask [U, K]. Raises ValueError where no utterance has a keyword."""
        present = np.asarray(mask, dtype=bool)
        owner, number = np.nonzero(present)
        if not len(owner):
            raise ValueError("no utterance has a keyword")
        return cls(owner, number, (present.shape[0], present.shape[1]))

    @property
    def counts(self) -> Ints:
        """Keywords of each utterance, [U]."""
        return np.bincount(self.owner, minlength=self.shape[0])


class HitRates:
    """Makes rows ``{"kw1": ..., "kw2": ..., "avg": ...}`` of values of keywords.

    "avg" is the mean over all counted keywords, so that a kw7 of few utterances weighs as little as it is rare. Where
    every utterance has K keywords, that is the mean of kw1 to kwK, the "Avg" of the papers.

    Args:
        places: of the keywords. bootstrap: over the U utterances, None for no intervals.
    """

    def __init__(self, places: KeywordIndex, bootstrap: Bootstrap | None = None) -> None:
        self.places, self.bootstrap = places, bootstrap

    def row(self, values: ArrayLike, counted: ArrayLike, scale: float = 100.0) -> dict[str, float]:
        """Means of values [N] over the counted [N] ones, times scale. A keyword that nobody has is left out.

        Raises ValueError where nothing is counted.
        """
        columns = self._columns(values, counted)
        means = _means(columns.sum(axis=0)[None])[0]
        if np.isnan(means[-1]):
            raise ValueError("no utterance has both a keyword and a gold subword")
        return {name: scale * float(means[at]) for at, name in self._names(means)}

    def scored(self, values: ArrayLike, counted: ArrayLike, scale: float = 100.0) -> dict[str, Any]:
        """`row` with "ci95": the 95% interval of each of its numbers, where there is a bootstrap."""
        row: dict[str, Any] = self.row(values, counted, scale)
        if self.bootstrap is not None:
            resampled = _means(self.bootstrap.sums(self._columns(values, counted)))
            there = [at for at, _ in self._names(_means(self._columns(values, counted).sum(axis=0)[None])[0])]
            low, high = scale * interval(resampled[:, there])
            row["ci95"] = {name: [float(low[at]), float(high[at])] for at, name in enumerate(row)}
        return row

    def difference(self, first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]) -> dict[str, Any]:
        """How much higher the "avg" of the second (values, counted) is, in points, with its paired interval."""
        columns = [self._columns(*case) for case in (first, second)]
        one, other = (float(_means(part.sum(axis=0)[None])[0, -1]) for part in columns)
        found: dict[str, Any] = {"avg": 100.0 * (other - one)}
        if self.bootstrap is not None:
            drawn = [_means(self.bootstrap.sums(part))[:, -1] for part in columns]
            found["ci95"] = (100.0 * interval((drawn[1] - drawn[0])[:, None])[:, 0]).tolist()
        return found

    def _columns(self, values: ArrayLike, counted: ArrayLike) -> Floats:
        """[U, 2K]: the counted values of every keyword, and how many of them there are, 0 or 1."""
        use = np.asarray(counted, dtype=bool)
        at, keywords = (self.places.owner[use], self.places.number[use]), self.places.shape[1]
        columns = np.zeros((self.places.shape[0], 2 * keywords))
        columns[at] = np.asarray(values, dtype=np.float64)[use]
        columns[at[0], keywords + at[1]] = 1.0
        return columns

    @staticmethod
    def _names(means: Floats) -> list[tuple[int, str]]:
        """Column and name of the numbers that exist."""
        names = [f"kw{k + 1}" for k in range(len(means) - 1)] + ["avg"]
        return [(at, name) for at, name in enumerate(names) if not np.isnan(means[at])]


def _means(sums: Floats) -> Floats:
    """Sums [n, 2K] as `HitRates._columns` lays them out to means [n, K + 1], that of all last; NaN of nothing."""
    keywords = sums.shape[1] // 2
    value, count = (np.c_[part, part.sum(axis=1)] for part in (sums[:, :keywords], sums[:, keywords:]))
    return np.where(count > 0, value / np.maximum(count, 1), np.nan)
