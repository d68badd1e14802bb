"""Resamples of clusters, compared with the same draws in plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from speechclip.eval.bootstrap import Bootstrap, interval


def test_clusters_are_drawn_whole() -> None:
    # image 7 has two items with the sum 3, image 5 has one item, 10. Each is drawn 0, 1 or 2 times
    sums = Bootstrap([7, 5, 7], n=200, seed=1).sums([[1.0], [10.0], [2.0]])
    assert sums.shape == (200, 1)
    assert set(sums[:, 0]) == {6.0, 13.0, 20.0}


def test_sums_equal_those_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    clusters, columns = generator.integers(0, 6, 40), generator.standard_normal((40, 3))
    draws = np.random.default_rng(9).multinomial(6, np.full(6, 1 / 6), size=25)
    wanted = np.stack([sum(draw[clusters[q]] * columns[q] for q in range(40)) for draw in draws])
    assert Bootstrap(clusters, 25, 9).sums(columns) == pytest.approx(wanted)
    monkeypatch.setattr("speechclip.eval.bootstrap._BLOCK", 20)  # several blocks must give the same draws
    assert Bootstrap(clusters, 25, 9).sums(columns) == pytest.approx(wanted)


def test_one_object_uses_the_same_resamples() -> None:
    bootstrap = Bootstrap(np.arange(30), 50, 2)
    values = np.random.default_rng(0).random((30, 2))
    both, first = bootstrap.sums(values), bootstrap.sums(values[:, :1])
    assert both[:, :1] == pytest.approx(first)
    assert not np.allclose(first, Bootstrap(np.arange(30), 50, 3).sums(values[:, :1]))


def test_interval_by_hand() -> None:
    values = np.stack([np.arange(101.0), np.full(101, 4.0)], axis=1)
    assert interval(values) == pytest.approx(np.array([[2.5, 4.0], [97.5, 4.0]]))
    values[50, 1] = np.nan
    assert interval(values, level=0.5) == pytest.approx(np.array([[25.0, 4.0], [75.0, 4.0]]))


def test_bootstrap_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="0 resamples"):
        Bootstrap([1, 2], 0)
    with pytest.raises(ValueError, match="nothing to resample"):
        Bootstrap([])
    with pytest.raises(ValueError, match="do not fit the 2 items"):
        Bootstrap([1, 2]).sums([[1.0]])
