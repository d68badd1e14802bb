"""Keyword times as word boundaries, by hand and compared with the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from speechclip.eval.bootstrap import Bootstrap
from speechclip.eval.segmentation import (
    boundary_measures,
    keyword_boundaries,
    matches,
    segmentation_report,
    word_boundaries,
)


def test_word_boundaries_are_inner_and_distinct() -> None:
    assert word_boundaries([(0.0, 0.5), (0.5, 0.9), (1.2, 2.0)]) == [0.5, 0.9, 1.2]
    assert word_boundaries([(0.3, 1.0), (0.1, 0.3004)]) == [0.3]
    assert word_boundaries([(0.0, 1.0)]) == word_boundaries([]) == []


def test_keyword_boundaries_are_inside_the_utterance() -> None:
    words = [(0.5, 1.0), (1.0, 2.5)]
    assert keyword_boundaries([(0.6, 1.1), (1.1, 2.0)], words, 0.02) == [0.6, 1.1, 2.0]
    assert keyword_boundaries([(1.1, 2.0), (0.7, 1.1006)], words, 0.02) == [0.7, 1.1, 2.0]  # distinct and sorted
    # outside, at the ends, or within the tolerance of an end
    assert keyword_boundaries([(0.0, 0.4), (0.5, 0.52), (2.48, 2.5), (2.6, 3.0)], words, 0.02) == []
    assert keyword_boundaries([(0.0, 0.4), (0.5, 0.52), (2.48, 2.5), (2.6, 3.0)], words, 0.01) == [0.52, 2.48]
    assert keyword_boundaries([], words, 0.02) == []


def test_matches_by_hand() -> None:
    assert matches([0.5, 1.0], [0.52, 1.03], 0.02) == 1
    assert matches([0.5, 0.51], [0.5], 0.02) == 1  # a boundary matches once
    assert matches([0.5], [0.49, 0.51], 0.02) == 1
    assert matches([], [0.5], 0.02) == matches([0.5], [], 0.02) == 0


def test_matches_equals_the_largest_pairing() -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        found, true = (np.sort(generator.random(generator.integers(0, 6))).tolist() for _ in range(2))
        short, long = sorted((found, true), key=len)
        best = max(
            sum(abs(a - b) <= 0.15 for a, b in zip(short, order, strict=False))
            for order in itertools.permutations(long, len(short))
        )
        assert matches(found, true, 0.15) == best


def test_measures_by_hand() -> None:
    # 3 of 4 found boundaries match, and 3 of 6 true boundaries
    scores = boundary_measures(3, 4, 6)
    assert scores["precision"] == pytest.approx(75)
    assert scores["recall"] == pytest.approx(50)
    assert scores["f1"] == pytest.approx(60)
    assert scores["over_segmentation"] == pytest.approx(100 * (4 / 6 - 1))
    first, second = math.sqrt(0.5**2 + (1 / 3) ** 2), abs((1 / 3 + 0.5 - 1) / math.sqrt(2))
    assert scores["r_value"] == pytest.approx(100 * (1 - (first + second) / 2))


def test_measures_at_their_extremes() -> None:
    perfect = boundary_measures(6, 6, 6)
    assert [perfect[name] for name in ("f1", "over_segmentation", "r_value")] == pytest.approx([100, 0, 100])
    nothing = boundary_measures(0, 0, 6)
    assert [nothing[name] for name in ("precision", "recall", "f1", "over_segmentation")] == [0, 0, 0, -100]
    everywhere, few = boundary_measures(6, 24, 6), boundary_measures(3, 3, 6)
    assert everywhere["recall"] == 100 > few["recall"]
    assert everywhere["r_value"] < few["r_value"]  # boundaries everywhere give a high recall
    with pytest.raises(ValueError, match="no word boundary"):
        boundary_measures(0, 3, 0)


def test_report_sums_counts_over_utterances() -> None:
    words = [[(0.0, 0.5), (0.5, 1.0)], [(0.2, 0.4), (0.4, 0.9), (1.0, 1.2)]]
    spans = [[(0.0, 0.51), (0.51, 1.0)], [(0.0, 0.6), (0.6, 1.08), (1.08, 1.2)]]
    report = segmentation_report(spans, words, 0.02)
    # true: 0.5 | 0.4 0.9 1.0; found: 0.51 | 0.6 1.08; evenly: 0.5 | 0.533 0.867
    assert (report["n_found"], report["n_true"], report["n_utterances"]) == (3, 4, 2)
    assert report["precision"] == pytest.approx(100 / 3)
    assert report["recall"] == pytest.approx(25)
    assert report["uniform"]["recall"] == pytest.approx(25)
    assert segmentation_report(spans, words, 0.0801)["recall"] == pytest.approx(50)
    assert segmentation_report(words, words, 0.0)["r_value"] == pytest.approx(100)


def test_end_of_the_last_keyword_is_a_boundary() -> None:
    words = [[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]]
    report = segmentation_report([[(0.0, 1.0), (1.0, 2.0)]], words, 0.02)
    assert (report["n_found"], report["n_true"]) == (2, 2)
    assert [report[name] for name in ("precision", "recall", "over_segmentation", "r_value")] == pytest.approx(
        [100, 100, 0, 100]
    )
    # one keyword over the middle word: its start and end match
    assert segmentation_report([[(1.0, 2.0)]], words, 0.02)["f1"] == pytest.approx(100)
    # the same number, evenly spaced: at 1 and 2
    assert report["uniform"]["f1"] == pytest.approx(100)


def test_silence_around_the_words_has_no_boundaries() -> None:
    words = [[(0.4, 1.0), (1.0, 1.5), (1.5, 2.0)]]  # the recording lasts from 0 to 2.4
    segments = [[(0.0, 0.3), (0.3, 1.01), (1.01, 1.8), (1.8, 2.4)]]  # a chain over the whole recording with its silence
    report = segmentation_report(segments, words, 0.02)
    # 1.01 and 1.8 are inside. The first matches; 1.5 is missed
    assert (report["n_found"], report["n_true"]) == (2, 2)
    assert (report["precision"], report["recall"]) == (50.0, 50.0)
    # attention spans may overlap: 0.9 1.02 | 0.98 1.5
    spans = [[(0.9, 1.02), (0.98, 1.5)]]
    report = segmentation_report(spans, words, 0.02)
    assert (report["n_found"], report["n_true"]) == (4, 2)
    assert (report["precision"], report["recall"], report["over_segmentation"]) == (50.0, 100.0, 100.0)


def test_inside_depends_on_the_tolerance() -> None:
    words, spans = [[(0.0, 0.5), (0.5, 1.0)]], [[(0.03, 0.5), (0.5, 0.96)]]
    report = segmentation_report(spans, words, 0.02)
    assert (report["n_found"], report["precision"]) == (3, pytest.approx(100 / 3))
    assert report["tolerances"]["0.05"]["precision"] == pytest.approx(
        100
    )  # 0.03 and 0.96 are near the ends of the utterance
    assert report["uniform"]["recall"] == pytest.approx(100)  # three boundaries at a quarter, a half and three quarters
    assert report["uniform"]["precision"] == pytest.approx(100 / 3)


def test_shuffled_keywords_are_counted_after_stretching() -> None:
    words = [[(1.0, 2.0), (2.0, 3.0)], [(0.0, 0.5), (0.5, 1.0)]]
    spans = [[(0.0, 2.0), (2.0, 4.0)], [(0.25, 0.5), (0.5, 0.75)]]
    report = segmentation_report(spans, words, 0.02, shuffled_index=[1, 0])
    assert (report["n_found"], report["precision"]) == (4, 50.0)  # 2.0 | 0.25 0.5 0.75
    # the second stretched to the first: 1.5 2.0 2.5. The first stretched: -0.5 0.5 1.5, one inside
    assert report["shuffled_speech"] == pytest.approx(
        {"precision": 50, "recall": 100, "f1": 200 / 3, "over_segmentation": 100, "r_value": report["r_value"]}
    )


def test_controls_and_intervals_by_hand() -> None:
    words = [[(0.0, 1.0), (1.0, 2.0)], [(0.0, 0.25), (0.25, 1.0)]]
    spans = [[(0.0, 1.0), (1.0, 2.0)], [(0.0, 0.5), (0.5, 1.0)]]  # the first matches, the second does not
    report = segmentation_report(spans, words, 0.04, shuffled_index=[1, 0], bootstrap=Bootstrap([0, 1], 100, 0))
    assert report["f1"] == pytest.approx(50)
    # 0.5 of the second is 1.0 in the first. 1.0 of the first is 0.5 in the second
    assert report["shuffled_speech"]["f1"] == pytest.approx(50)
    assert report["ci95"]["f1"] == [0.0, 100.0]  # resamples have one utterance, the other, or both
    assert report["ci95"]["over_segmentation"] == [0.0, 0.0]
    assert report["tolerances"]["0.05"]["f1"] == pytest.approx(50)
    assert segmentation_report(spans, words, 0.25)["f1"] == pytest.approx(100)
    assert list(report["tolerances"]) == ["0.02", "0.05"]
    assert "shuffled_speech" not in segmentation_report(spans, words, 0.04)


def test_utterances_without_keywords_lower_recall() -> None:
    report = segmentation_report([[], [(0.0, 0.5), (0.5, 1.0)]], [[(0.0, 0.5), (0.5, 1.0)]] * 2, 0.02)
    assert (report["recall"], report["precision"]) == (50.0, 100.0)
