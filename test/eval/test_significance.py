"""The paired test between two runs, by hand and compared with all exchanges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from speechclip.eval.significance import paired_scores, paired_test


def test_p_is_the_share_of_larger_exchanges() -> None:
    # hits of the first run minus hits of the second, by image: 2, 1, 1, -1
    first, second = [1, 1, 1, 1, 9, 9], [9, 9, 9, 9, 9, 1]
    clusters = [0, 0, 1, 2, 2, 3]
    found = paired_test(first, second, clusters, n=20000, seed=1)["R@1"]
    sums = np.array([2, 1, 1, -1])
    exact = np.mean([abs(np.dot(signs, sums)) >= 3 for signs in itertools.product((-1, 1), repeat=4)])
    assert found["difference"] == pytest.approx(50.0) and found["first"] == pytest.approx(100 * 4 / 6)
    assert found["p"] == pytest.approx(exact, abs=0.015)


def test_p_of_equal_and_of_different_runs() -> None:
    rng = np.random.default_rng(0)
    ranks, clusters = rng.integers(1, 20, 300), np.repeat(np.arange(60), 5)
    assert all(
        row["p"] == 1.0 and row["difference"] == 0 for row in paired_test(ranks, ranks, clusters, n=200).values()
    )
    clear = paired_test(np.ones(300), ranks + 1, clusters, n=999, seed=3)
    assert clear["R@1"]["p"] == pytest.approx(0.001) and clear == paired_test(
        np.ones(300), ranks + 1, clusters, n=999, seed=3
    )


def test_queries_of_one_image_count_once() -> None:
    # a hundred better queries of one image count once: an exchange of this image is as large
    assert paired_test([1] * 100, [9] * 100, [0] * 100, n=500)["R@1"]["p"] == 1.0


def test_arrays_that_do_not_fit_are_refused() -> None:
    for ranks, clusters in (([1, 2], [0]), ([], [])):
        with pytest.raises(ValueError, match="do not fit"):
            paired_test(ranks, ranks, clusters)


def rate(sums: np.ndarray) -> np.ndarray:
    """Return the percentage of hits."""
    return 100 * sums[..., :1] / np.maximum(sums[..., 1:], 1)


def test_p_of_ratios_equals_all_exchanges() -> None:
    # hits and keywords of each utterance; the runs differ in keywords; the first two utterances have one image
    first, second = [[2, 2], [1, 3], [4, 5], [0, 1], [2, 4]], [[0, 4], [1, 2], [1, 6], [1, 1], [1, 3]]
    images = np.array(["a", "a", "b", "c", "d"])
    found = paired_scores(first, second, images, rate, ["clean"], n=20000, seed=2)["clean"]
    assert (found["first"], found["second"]) == pytest.approx((100 * 9 / 15, 100 * 4 / 16))
    assert found["difference"] == pytest.approx(35.0)
    reached = []
    for exchanged in itertools.product((False, True), repeat=4):
        sums = np.zeros((2, 2))
        for row, image in enumerate(images):
            pair = [first[row], second[row]]
            sums += pair[::-1] if exchanged["abcd".index(image)] else pair
        reached.append(abs(np.diff(rate(sums)[:, 0])[0]) >= 35.0 - 1e-9)
    assert 0.1 < np.mean(reached) < 0.6
    assert found["p"] == pytest.approx(np.mean(reached), abs=0.015)


def test_interval_of_a_difference_by_hand() -> None:
    # the first image gains everything, the second nothing. Resamples have one of them or both
    found = paired_scores([[1, 1], [1, 1]], [[0, 1], [1, 1]], [0, 1], rate, ["x"], n=10)["x"]
    assert (found["difference"], found["ci95"]) == (50.0, [0.0, 100.0])
    same = paired_scores([[1, 1], [0, 1]], [[1, 1], [0, 1]], [0, 1], rate, ["x"], n=10)["x"]
    assert (same["difference"], same["ci95"], same["p"]) == (0.0, [0.0, 0.0], 1.0)  # both runs are resampled together
    assert paired_test([1, 1], [9, 1], [0, 1], n=10)["R@1"]["ci95"] == [0.0, 100.0]
    with pytest.raises(ValueError, match="do not fit"):
        paired_scores([[1, 1]], [[1, 1], [1, 1]], [0], rate, ["x"])
    with pytest.raises(ValueError, match="0 choices"):
        paired_scores([[1, 1]], [[1, 1]], [0], rate, ["x"], n=0)
