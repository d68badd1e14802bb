"""Rows of keyword means, with intervals, by hand and against draws written out."""

from __future__ import annotations

import numpy as np
import pytest

from speechclip.eval.bootstrap import Bootstrap
from speechclip.eval.rates import HitRates, KeywordIndex

MASK = [[True, True], [True, False], [False, False], [True, True]]  # five keywords of three utterances


def test_places_of_a_mask() -> None:
    places = KeywordIndex.of(MASK)
    assert (places.owner.tolist(), places.number.tolist(), places.shape) == ([0, 0, 1, 3, 3], [0, 1, 0, 0, 1], (4, 2))
    assert places.counts.tolist() == [2, 1, 0, 2]
    with pytest.raises(ValueError, match="no utterance has a keyword"):
        KeywordIndex.of([[False]])


def test_a_row_by_hand() -> None:
    rates = HitRates(KeywordIndex.of(MASK))
    # kw1: 1, 0, 1; kw2: 0 and one that is not counted
    row = rates.scored([1, 0, 0, 1, 1], [True, True, True, True, False])
    assert row == pytest.approx({"kw1": 200 / 3, "kw2": 0.0, "avg": 50.0})  # two of four
    assert rates.row([0.5, 0.1, 0.3, 0.1, 0.3], [True] * 5, scale=1.0) == pytest.approx(
        {"kw1": 0.3, "kw2": 0.2, "avg": 0.26}
    )
    # a keyword that nobody has
    assert rates.row([1, 1, 0, 1, 1], [True, False, True, True, False]) == pytest.approx(
        {"kw1": 200 / 3, "avg": 200 / 3}
    )
    with pytest.raises(ValueError, match="no utterance has both"):
        rates.row([1] * 5, [False] * 5)


def test_a_rare_keyword_weighs_little_and_equally_many_weigh_the_same() -> None:
    places = KeywordIndex.of([[True, False]] * 99 + [[True, True]])  # a second keyword in one utterance of a hundred
    row = HitRates(places).row(places.number == 1, [True] * 101)
    assert row == pytest.approx({"kw1": 0.0, "kw2": 100.0, "avg": 100 / 101})
    places = KeywordIndex.of(np.ones((7, 3)))
    row = HitRates(places).row(np.random.default_rng(1).random(21), [True] * 21)
    assert row["avg"] == pytest.approx(np.mean([row[f"kw{number}"] for number in (1, 2, 3)]))


def draws_of(bootstrap: Bootstrap, utterances: int) -> np.ndarray:
    """How often each utterance is drawn in each resample."""
    return np.round(bootstrap.sums(np.eye(utterances))).astype(int)


def test_intervals_and_differences_against_loops() -> None:
    generator = np.random.default_rng(4)
    mask = generator.random((12, 3)) < 0.7
    places = KeywordIndex.of(mask)
    total = len(places.owner)
    hit, other, counted = (generator.random(total) < share for share in (0.4, 0.7, 0.9))
    bootstrap = Bootstrap(np.arange(12) // 2, 60, 5)
    rates = HitRates(places, bootstrap)

    def drawn(values: np.ndarray) -> list[list[float]]:
        rows = []
        for draw in draws_of(bootstrap, 12):
            rate = []
            for ks in ((0,), (1,), (2,), (0, 1, 2)):
                weight = np.array([draw[u] if n in ks else 0 for u, n in zip(places.owner, places.number, strict=True)])
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
