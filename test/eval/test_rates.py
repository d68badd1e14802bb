"""Rows of keyword means with intervals, by hand and compared with plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from speechclip.eval.bootstrap import Bootstrap
from speechclip.eval.rates import HitRates, KeywordIndex

MASK = [[True, True], [True, False], [False, False], [True, True]]  # five keywords of three utterances


def test_keyword_index_of_a_mask() -> None:
    index = KeywordIndex.of(MASK)
    assert (index.owner.tolist(), index.number.tolist(), index.shape) == ([0, 0, 1, 3, 3], [0, 1, 0, 0, 1], (4, 2))
    assert index.counts.tolist() == [2, 1, 0, 2]
    with pytest.raises(ValueError, match="no utterance has a keyword"):
        KeywordIndex.of([[False]])


def test_row_by_hand() -> None:
    rates = HitRates(KeywordIndex.of(MASK))
    # kw1: 1, 0, 1. kw2: 0 and one that does not count
    row = rates.scored([1, 0, 0, 1, 1], [True, True, True, True, False])
    assert row == pytest.approx({"kw1": 200 / 3, "kw2": 0.0, "avg": 50.0})  # two of four
    assert rates.row([0.5, 0.1, 0.3, 0.1, 0.3], [True] * 5, scale=1.0) == pytest.approx(
        {"kw1": 0.3, "kw2": 0.2, "avg": 0.26}
    )
    # the second keyword never counts
    assert rates.row([1, 1, 0, 1, 1], [True, False, True, True, False]) == pytest.approx(
        {"kw1": 200 / 3, "avg": 200 / 3}
    )
    with pytest.raises(ValueError, match="no utterance has both"):
        rates.row([1] * 5, [False] * 5)


def test_avg_weighs_every_keyword_equally() -> None:
    index = KeywordIndex.of([[True, False]] * 99 + [[True, True]])  # one utterance of a hundred has a second keyword
    row = HitRates(index).row(index.number == 1, [True] * 101)
    assert row == pytest.approx({"kw1": 0.0, "kw2": 100.0, "avg": 100 / 101})
    index = KeywordIndex.of(np.ones((7, 3)))
    row = HitRates(index).row(np.random.default_rng(1).random(21), [True] * 21)
    assert row["avg"] == pytest.approx(np.mean([row[f"kw{number}"] for number in (1, 2, 3)]))


def draws_of(bootstrap: Bootstrap, utterances: int) -> np.ndarray:
    """Return how often each utterance is in each resample."""
    return np.round(bootstrap.sums(np.eye(utterances))).astype(int)


def test_intervals_equal_plain_loops() -> None:
    generator = np.random.default_rng(4)
    mask = generator.random((12, 3)) < 0.7
    index = KeywordIndex.of(mask)
    total = len(index.owner)
    hit, other, counted = (generator.random(total) < share for share in (0.4, 0.7, 0.9))
    bootstrap = Bootstrap(np.arange(12) // 2, 60, 5)
    rates = HitRates(index, bootstrap)

    def drawn(values: np.ndarray) -> list[list[float]]:
        rows = []
        for draw in draws_of(bootstrap, 12):
            rate = []
            for ks in ((0,), (1,), (2,), (0, 1, 2)):
                weight = np.array([draw[u] if n in ks else 0 for u, n in zip(index.owner, index.number, strict=True)])
                weight = weight * counted
                rate.append(100 * (weight * values).sum() / weight.sum() if weight.sum() else np.nan)
            rows.append(rate)
        return rows

    row = rates.scored(hit, counted)
    wanted = np.nanpercentile(drawn(hit), [2.5, 97.5], axis=0)
    assert list(row["ci95"]) == ["kw1", "kw2", "kw3", "avg"]
    assert np.array(list(row["ci95"].values())) == pytest.approx(wanted.T)
    difference = rates.difference((hit, counted), (other, counted))
    assert difference["avg"] == pytest.approx(rates.row(other, counted)["avg"] - row["avg"])
    paired = np.array(drawn(other))[:, -1] - np.array(drawn(hit))[:, -1]
    assert difference["ci95"] == pytest.approx(np.percentile(paired, [2.5, 97.5]).tolist())
