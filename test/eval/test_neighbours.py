"""Nearest subwords, by hand and compared with a sort."""

from __future__ import annotations

import numpy as np
import pytest
from circle import EOT, PAD, SOT, circle_table, on_circle

from speechclip.eval.neighbours import largest, search


def nearest(z, table, k, exclude=None):
    """Search with one exclusion. Return rows and cosines."""
    nothing = np.zeros(len(table), dtype=bool)
    return search(z, table, [(k, nothing if exclude is None else exclude)]).nearest[0]


def test_nearest_by_hand():
    table = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    index, cosine = nearest([[2.0, 0.1], [-1.0, 0.5]], table, 2)
    assert index.tolist() == [[0, 2], [3, 1]]
    assert cosine[1, 0] == pytest.approx(1 / np.sqrt(1.25))
    index, _ = nearest([[2.0, 0.1]], table, 2, exclude=np.array([True, False, False, False]))
    assert index.tolist() == [[2, 1]]


def test_first_of_equal_rows_wins():
    assert nearest([[1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0], [2.0, 0.0]], 2)[0].tolist() == [[1, 2]]


def test_nearest_equals_a_sort(monkeypatch):
    generator = np.random.default_rng(0)
    z, table = generator.standard_normal((36, 6)), generator.standard_normal((50, 6))
    exclude = generator.random(50) < 0.3
    monkeypatch.setattr("speechclip.eval.neighbours.BLOCK_SCORES", 100)  # several blocks
    index, cosine = nearest(z, table, 5, exclude)
    assert index.shape == cosine.shape == (36, 5)
    for at, vector in enumerate(z):
        every = table @ vector / np.linalg.norm(table, axis=1) / np.linalg.norm(vector)
        order = [row for row in np.argsort(-every) if not exclude[row]][:5]
        assert index[at].tolist() == order
        assert cosine[at] == pytest.approx(every[order])


def test_search_refuses_bad_arguments():
    with pytest.raises(ValueError, match="3 neighbours are needed, 2 subwords are left"):
        nearest([[1.0]], [[1.0], [2.0], [3.0]], 3, exclude=np.array([True, False, False]))
    with pytest.raises(ValueError, match="z contains NaN"):
        nearest([[np.nan]], [[1.0]], 1)


def test_first_of_equal_rows_wins_at_any_depth():
    table = np.repeat(on_circle(0, 90, 45), 4, axis=0)  # rows 0-3, 4-7, 8-11 are equal
    assert nearest(on_circle(40), table, 6)[0].tolist() == [[8, 9, 10, 11, 0, 1]]
    assert nearest(on_circle(40), table, 1)[0].tolist() == [[8]]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 7, 8])
def test_largest_equals_a_stable_sort(k):
    scores = np.random.default_rng(k).integers(0, 4, (50, 8)).astype(float)  # with many ties
    columns, values = largest(scores, k)
    assert columns.tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()
    assert np.array_equal(values, np.take_along_axis(scores, columns, axis=1))


def test_one_search_has_several_exclusions():
    table = circle_table()
    found = search(
        on_circle(1.2, 29.0), table.embeddings,
        [(3, np.zeros(12, dtype=bool)), (2, table.special), (2, table.no_content), (4, table.rows(table.stop_ids))],
        # the first set has 14 and 18, the second is empty
        {"own": (np.array([[table.ids.tolist().index(14), table.ids.tolist().index(18)], [-1, -1]]), np.array([0, 0])),
         "none": (np.array([[-1, -1]]), np.array([0, 0]))},
    )  # fmt: skip
    ids = [table.ids[near.rows].tolist() for near in found.nearest]
    assert ids[:3] == [[[SOT, EOT, 10], [13, 12, 14]], [[10, 11], [13, 12]], [[10, 12], [12, 14]]]
    assert ids[3] == [[SOT, EOT, 10, PAD], [12, 14, 15, PAD]]  # the rows excluded before are included again
    rows, cosines = found.best["own"]
    assert table.ids[rows].tolist() == [14, 14]
    assert cosines == pytest.approx(np.cos(np.deg2rad([38.8, 11.0])))
    assert found.best["none"][0].tolist() == [-1, -1]
    assert np.isnan(found.best["none"][1]).all()
    assert PAD not in np.ravel(ids[0])


def test_blocks_give_the_same_neighbours(monkeypatch):
    generator = np.random.default_rng(5)
    z, table = generator.standard_normal((30, 4)), generator.standard_normal((40, 4))
    less, more = generator.random(40) < 0.2, generator.random(40) < 0.3
    wanted = [(4, less), (7, more)]
    sets = {"x": (generator.integers(-1, 40, (5, 3)), generator.integers(0, 5, 30))}
    whole = search(z, table, wanted, sets)
    monkeypatch.setattr("speechclip.eval.neighbours.BLOCK_SCORES", 90)
    parts = search(z, table, wanted, sets)
    for near, again, (k, exclude) in zip(whole.nearest, parts.nearest, wanted, strict=True):
        assert np.array_equal(near.rows, again.rows)
        assert np.array_equal(near.rows, nearest(z, table, k, exclude)[0])
    assert np.array_equal(whole.best["x"][0], parts.best["x"][0])
