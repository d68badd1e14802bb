"""Keyword spotting on rankings solved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from speechclip.eval.spotting import (
    attention_scores,
    average_precision,
    equal_error_rate,
    keyword_scores,
    spotting_labels,
    spotting_report,
    words_of,
)


def labels(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


@pytest.mark.parametrize(
    ("scores", "truth", "eer", "ap"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 0.0, 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 1.0, (1 / 3 + 2 / 4) / 2),
        ([4, 3, 2, 1], [1, 0, 1, 0], 0.5, (1 + 2 / 3) / 2),
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.5, 0.5),
        ([5, 4, 3, 2, 1], [1, 0, 0, 1, 0], 0.5, (1 + 2 / 4) / 2),
        ([4, 3, 2, 1], [1, 1, 0, 1], 1 / 3, (1 + 1 + 3 / 4) / 3),
        ([4, 3, 3, 1], [1, 1, 0, 1], 0.5, (1 + 2 / 3 + 3 / 4) / 3),
    ],
)
def test_error_rate_and_precision_by_hand(scores: list[float], truth: list[int], eer: float, ap: float) -> None:
    values = np.array(scores, dtype=float)
    assert equal_error_rate(values, labels(*truth)) == pytest.approx(eer)
    assert average_precision(values, labels(*truth)) == pytest.approx(ap)


def test_scores_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, truth = rng.integers(0, 12, 60) / 4.0, rng.random(60) < 0.3
        false, true, _ = metrics.roc_curve(truth, scores)
        grid = np.linspace(0, 1, 200_001)
        crossing = grid[np.argmin(np.abs(1 - grid - np.interp(grid, false, true)))]
        assert equal_error_rate(scores, truth) == pytest.approx(crossing, abs=2e-5)
        assert average_precision(scores, truth) == pytest.approx(metrics.average_precision_score(truth, scores))


def test_keyword_scores_divide_by_ten() -> None:
    row = keyword_scores(np.arange(20.0, 0, -1), labels(*[1, 0, 1, 1] + [0] * 14 + [1, 1]))
    assert (row["P@10"], row["P@N"]) == (30.0, 60.0)


def test_spotting_report_averages_over_keywords() -> None:
    truth = np.stack([labels(1, 1, 0, 0), labels(0, 1, 0, 0), labels(0, 0, 0, 0), labels(1, 1, 1, 1)], axis=1)
    scores = np.tile(np.array([[4.0], [3], [2], [1]]), (1, 4))
    report = spotting_report(scores, truth, ["dog", "red", "never", "always"], n_bootstrap=50)
    assert set(report["keywords"]) == {"dog", "red"} and report["n_keywords"] == 2
    assert report["P@N"] == 50.0  # 100 and 0
    assert report["keywords"]["red"] == {"P@10": 10, "P@N": 0, "EER": pytest.approx(100 / 3), "AP": 50, "N": 1}
    chance = report["chance"]
    assert chance["P@N"] == pytest.approx((50 + 25) / 2) and chance["P@10"] == pytest.approx(37.5 * 0.4)
    # one of four: the mean of 1, 1/2, 1/3, 1/4; two of four: the mean of (1 + (r - 1) / 3) / r
    assert chance["AP"] == pytest.approx(50 * (25 / 12 / 4 + (1 + 2 / 3 + 5 / 9 + 1 / 2) / 4))
    assert set(report["ci95"]) == {"P@10", "P@N", "EER", "AP"}


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        (np.zeros((2, 1)), np.zeros((2, 2), bool), "do not fit"),
        (np.full((2, 1), np.nan), labels(1, 0)[:, None], "not finite"),
        (np.zeros((2, 1)), labels(1, 1)[:, None], "no keyword has utterances with and without it"),
    ],
)
def test_spotting_report_refuses_bad_input(scores: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spotting_report(scores, truth, ["a"])


def test_attention_scores_take_the_best_vector() -> None:
    vectors = np.array([[[2.0, 0], [0, 1]], [[0.6, 0.8], [9, 9]]])
    mask = np.array([[True, True], [True, False]])
    scores, best = attention_scores(vectors, mask, {"x": np.array([[5.0, 0]]), "y": np.array([[0.0, 1], [0, 3]])})
    assert scores == pytest.approx(np.array([[1, 1], [0.6, 0.8]]))
    assert best.tolist() == [[0, 1], [0, 0]]


def test_spotting_labels_ignore_case_and_punctuation() -> None:
    assert words_of('A "dog", running.') == {"a", "dog", "running"}
    assert spotting_labels(["A Dog .", "cats"], ["dog", "cat"]).tolist() == [[True, False], [False, False]]
    assert spotting_labels(["", ""], ["dog"], [{"dog"}, set()]).tolist() == [[True], [False]]
