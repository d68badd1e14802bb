"""Keyword spans and the times of the words they name, by hand and compared with many positions."""

from __future__ import annotations

import numpy as np
import pytest
from circle import circle_table, on_circle, padded

from speechclip.data.alignments import AlignedWord
from speechclip.eval.keywords import Settings, find_neighbours
from speechclip.eval.overlap import SpokenWords, find_overlaps, overlap_report, overlapping

IDS = {"dog": (18,), "snowman": (12, 14), "tree": (16,), "the": (11,)}
WORDS = [
    [AlignedWord("the", 0.0, 0.2), AlignedWord("snowman", 0.2, 1.0), AlignedWord("tree", 1.2, 1.6)],
    [AlignedWord("dog", 0.1, 0.4), AlignedWord("tree", 0.4, 0.5), AlignedWord("dog", 0.8, 0.9)],
    [],
]
SECONDS = np.array([2.0, 1.0, 1.0])
SPOKEN = SpokenWords.of(WORDS, IDS, 18)


def overlaps_of(
    spans: list[tuple[float, float]], owner: list[int], named: list[int], words_of: list[int] | None = None
):
    return find_overlaps(
        spans, np.array(owner), np.array(named), SPOKEN, SECONDS, None if words_of is None else np.array(words_of)
    )


def test_overlaps_by_hand() -> None:
    spans = [(0.9, 1.1), (1.0, 1.2), (0.0, 0.1), (0.85, 1.0), (0.5, 0.8), (0.0, 1.0), (0.0, 1.0)]
    owner, named = [0, 0, 0, 1, 1, 1, 2], [14, 12, 13, 18, 18, 12, 18]
    found = overlaps_of(spans, owner, named)
    # overlaps "snowman"; just misses it; 13 is not spoken; overlaps the second "dog"; between both; not spoken; unknown
    assert found.hit.tolist() == [True, False, False, True, False, False, False]
    assert found.named.tolist() == [True, True, False, True, True, False, False]
    assert found.counted.tolist() == [True] * 6 + [False]


def test_chance_by_hand() -> None:
    # a span of 0.2 s in 2.0 s starts in [0, 1.8]. It overlaps "snowman" (0.2 to 1.0) if it starts from 0 to 1.0
    assert overlaps_of([(1.5, 1.7)], [0], [12]).chance[0] == pytest.approx(1.0 / 1.8)
    # 0.3 s in 1.0 s: it overlaps the first "dog" from 0 to 0.4 and the second from 0.5 to 0.7, the last start
    assert overlaps_of([(0.4, 0.7)], [1], [18]).chance[0] == pytest.approx(0.6 / 0.7)
    # 0.5 s: from 0 to 0.4 and from 0.3 on, so always
    assert overlaps_of([(0.4, 0.9)], [1], [18]).chance[0] == pytest.approx(1.0)
    # as long as the utterance, so it has one position
    assert overlaps_of([(0.0, 1.0)], [1], [16]).chance[0] == 1.0


def test_chance_equals_many_random_positions() -> None:
    generator = np.random.default_rng(2)
    owner = generator.integers(0, 2, 40)
    named = generator.choice([11, 12, 16, 18], 40)
    length = generator.uniform(0.02, 0.8, 40)
    start = generator.uniform(0, 1, 40) * (SECONDS[owner] - length)
    found = find_overlaps(np.stack([start, start + length], axis=1), owner, named, SPOKEN, SECONDS)
    for at in range(40):
        said = [word for word in WORDS[owner[at]] if named[at] in IDS[word.text]]
        places = np.linspace(0, SECONDS[owner[at]] - length[at], 4001)
        share = np.mean([bool(overlapping(said, place, place + length[at])) for place in places])
        assert found.chance[at] == pytest.approx(share, abs=1e-3)
        assert found.hit[at] == bool(overlapping(said, start[at], start[at] + length[at]))


def test_words_of_another_utterance_are_stretched() -> None:
    # the first utterance (2 s) with the words of the second (1 s): "dog" is at 0.2 to 0.8 and 1.6 to 1.8
    spans, owner = [(0.1, 0.3), (0.9, 1.5), (1.7, 2.0)], [0, 0, 0]
    assert overlaps_of(spans, owner, [18, 18, 18], [1, 0, 2]).hit.tolist() == [True, False, True]


def test_report_by_hand() -> None:
    # nearest content subwords: 12 16 | 18 14 | 18
    degrees, mask = [20, 60, 80, 40, 80], [[True, True], [True, True], [True, False]]
    z = np.zeros((3, 2, 2))
    z[np.array(mask)] = on_circle(*degrees)
    golds = [{11, 12, 14, 16}, {18, 16}, {18}]
    case = find_neighbours(
        z, mask, circle_table(), golds, [padded(*gold) for gold in golds], {12: 3, 18: 2, 16: 1, 10: 1, 17: 1}, None,
        Settings(bootstrap=100),
    )  # fmt: skip
    spans = [(0.3, 0.5), (0.0, 0.2), (0.85, 1.0), (0.0, 0.5), (0.0, 1.0)]
    report = overlap_report(case, spans, SPOKEN, SECONDS, "attention spans")
    # three of four keywords of aligned utterances name a spoken word. "snowman" and the second "dog" overlap
    assert (report["n_keywords"], report["n_named"], report["n_utterances"]) == (4, 3, 2)
    assert report["named"] == pytest.approx(75.0)
    assert report["overlap"] == pytest.approx(200 / 3)
    assert (report["kw1"], report["kw2"]) == (100.0, 0.0)
    assert report["mean_seconds"] == pytest.approx((0.2 + 0.2 + 0.15 + 0.5) / 4)
    # chance: 1.0 of 1.8; "tree" from 1.0 to 1.6 of 1.8; for 0.15 s from 0 to 0.4 and from 0.65 to 0.85 of 0.85
    chance = 100 * (1.0 / 1.8 + 0.6 / 1.8 + 0.6 / 0.85) / 3
    assert report["random_position"]["overlap"] == pytest.approx(chance)
    # every keyword names 12, "snowman". Only the first utterance has it, at 0.2 to 1.0
    assert report["frequency_prior"] == pytest.approx({"named": 50.0, "overlap": 50.0})
    assert report["ci95"]["overlap"][0] <= report["overlap"] <= report["ci95"]["overlap"][1]
    assert report["of"] == "attention spans"


def test_controls_and_intervals_by_hand() -> None:
    # nearest content subwords: 15 16 | 18 16. There are two images
    z = on_circle(50, 60, 80, 60).reshape(2, 2, 2)
    case = find_neighbours(
        z, np.ones((2, 2)), circle_table(), [{16}, {18}], [padded(16), padded(18)], {12: 3, 18: 2, 16: 1, 10: 1, 17: 1},
        None, Settings(bootstrap=200),
    )  # fmt: skip
    spoken = SpokenWords.of(WORDS[:2], IDS, 20)
    report = overlap_report(case, [(0.3, 0.5), (1.0, 1.3), (0.85, 1.0), (0.5, 0.65)], spoken, SECONDS[:2], "segments")
    # overlaps "tree"; 15 is not spoken; overlaps "dog"; just misses "tree"
    assert (report["named"], report["overlap"]) == pytest.approx((75.0, 200 / 3))
    # the other words, stretched: just misses "tree" at 0.8 to 1.0; overlaps "tree" at 0.6 to 0.8; no 15, no "dog"
    assert report["shuffled_speech"] == pytest.approx({"named": 50.0, "overlap": 50.0})
    # a resample of the first image has named 50, overlap 100; of the second image 100 and 50
    assert report["ci95"] == {"named": [50.0, 100.0], "overlap": [50.0, 100.0]}


def test_words_without_subwords_are_not_named() -> None:
    spoken = SpokenWords.of([[AlignedWord("1984", 0.0, 0.5)], []], {"1984": ()}, 18)
    assert len(spoken.key) == 0 and spoken.aligned.tolist() == [True, False]
    found = find_overlaps([(0.0, 0.1), (0.0, 0.1)], np.array([0, 1]), np.array([18, 18]), spoken, np.array([1.0, 1.0]))
    assert (found.named.tolist(), found.hit.tolist(), found.counted.tolist()) == (
        [False, False], [False, False], [True, False]
    )  # fmt: skip


def test_report_needs_an_alignment() -> None:
    case = find_neighbours(
        on_circle(0)[:, None], [[True]], circle_table(), [{10}], [padded(10)], {10: 1, 12: 1, 14: 1, 15: 1, 16: 1}
    )
    with pytest.raises(ValueError, match="no utterance with a keyword has an alignment"):
        overlap_report(case, [(0.0, 0.1)], SpokenWords.of([[]], {}, 18), np.array([1.0]), "segments")
