"""Keywords as a set: repetition, and the words they name, by hand and against loops."""

from __future__ import annotations

import numpy as np
import pytest
from circle import circle_table, on_circle, padded

from speechclip.eval.gold import Word
from speechclip.eval.keywords import Settings, find
from speechclip.eval.rates import Places
from speechclip.eval.words import distinct_report, repetition, word_report

COUNTS = {11: 9, 13: 8, 12: 7, 18: 6, 17: 5, 10: 4}


def case_of(degrees: list[list[float]], golds: list[set[int]], **settings: object):
    """Keywords at the angles, one list an utterance."""
    longest = max(map(len, degrees))
    mask = np.arange(longest)[None, :] < np.array([[len(row)] for row in degrees])
    z = np.zeros((*mask.shape, 2))
    z[mask] = on_circle(*(angle for row in degrees for angle in row))
    options = Settings(**{"bootstrap": 0, **settings})
    return find(z, mask, circle_table(), golds, [padded(*gold) for gold in golds], COUNTS, None, options)


def test_repetition_by_hand() -> None:
    places = Places.of([[True, True, True], [True, True, False], [False, False, False]])
    # 5 keywords of two utterances; 4 4 7 repeats one, 4 5 none
    assert repetition(np.array([4, 4, 7, 4, 5]), places) == pytest.approx(
        {"keywords": 2.5, "distinct": 2.0, "duplicates": 20.0}
    )


def test_distinct_by_hand() -> None:
    # nearest: 10 10 12 | 10 11; without stop words 10 10 12 | 10 12
    case = case_of([[0, 1, 20], [2, 14]], [{10}, {10}])
    report = distinct_report(case, "all", seed=0)
    assert {key: report[key] for key in ("keywords", "distinct", "duplicates")} == pytest.approx(
        {"keywords": 2.5, "distinct": 2.0, "duplicates": 20.0}
    )
    # keyword 1 exchanged 10 for 10, keyword 2 10 for 11, keyword 3 has no other: 10 11 12 | 10 10
    assert report["shuffled_speech"]["distinct"] == pytest.approx(2.0)
    assert distinct_report(case, "content", seed=0)["distinct"] == pytest.approx(2.0)
    # content subwords of training: 12 18 17 10 with counts 7 6 5 4 of 22; 3 and 2 draws
    share = np.array([7, 6, 5, 4]) / 22
    expected = [(1 - (1 - share) ** n).sum() for n in (3, 2)]
    assert distinct_report(case, "content", 0)["frequency_prior"]["distinct"] == pytest.approx(np.mean(expected))


def test_distinct_intervals_by_hand() -> None:
    case = case_of([[0, 20], [0, 0]], [{10}, {10}], bootstrap=100)
    interval = distinct_report(case, "all", 0)["ci95"]
    assert interval["distinct"] == [1.0, 2.0]  # one image or the other, or both
    assert interval["keywords"] == [2.0, 2.0]
    assert interval["duplicates"] == [0.0, 50.0]


CAPTIONS = [
    [Word("the", (11,)), Word("snowman", (12, 14)), Word("cat", (16,)), Word("cat", (16,))],
    [Word("dog", (18,)), Word("boat", (17, 10))],
]


def test_words_by_hand() -> None:
    # nearest: 12 16 16 | 18 10 15
    case = case_of([[20, 60, 61], [80, 0, 50]], [{11, 12, 14, 16}, {18, 17, 10}])
    report = word_report(case, "all", CAPTIONS)
    # five named, 15 is of no word; of "the", "snowman", "cat", "dog", "boat" all but the first are found, two whole
    assert (report["n_named"], report["n_words"]) == (5, 5)
    assert report["precision"] == pytest.approx(80.0)
    assert report["recall"] == pytest.approx(80.0)
    assert report["f1"] == pytest.approx(80.0)
    assert report["whole_words"] == pytest.approx(40.0)
    content = word_report(case, "content", CAPTIONS)
    assert (content["n_words"], content["recall"], content["whole_words"]) == (4, 100.0, 50.0)
    # shuffled: 12 and 16 are not of "dog" and "boat", 18, 10 and 15 not of the first caption
    assert report["shuffled_speech"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "whole_words": 0.0}
    # the prior names three an utterance: 11, 13, 12 and so "the", "snowman" (in part); without stop words 12, 18, 17
    assert report["frequency_prior"]["precision"] == pytest.approx(100 * 2 / 6)
    assert report["frequency_prior"]["recall"] == pytest.approx(100 * 2 / 5)
    assert report["frequency_prior"]["whole_words"] == pytest.approx(100 * 1 / 5)
    assert content["frequency_prior"]["precision"] == pytest.approx(100 * 3 / 6)
    assert content["frequency_prior"]["recall"] == pytest.approx(100 * 3 / 4)


def test_word_intervals_by_hand() -> None:
    case = case_of([[20, 60], [50, 50]], [{12, 16}, {18}], bootstrap=100)
    interval = word_report(case, "all", [[Word("cat", (16,))], [Word("dog", (18,))]])["ci95"]
    assert interval["recall"] == [0.0, 100.0]
    assert interval["precision"] == [0.0, 50.0]
    assert interval["f1"] == pytest.approx([0.0, 200 / 3])


def test_words_against_loops() -> None:
    generator = np.random.default_rng(6)
    degrees = [generator.uniform(0, 80, generator.integers(0, 5)).tolist() for _ in range(50)]
    captions = [
        [Word(f"v{n}", tuple(generator.integers(10, 19, generator.integers(1, 4)).tolist())) for n in range(3)]
        for _ in range(50)
    ]
    case = case_of(degrees, [{10}] * 50)
    for kind, left_out in (("all", set()), ("content", {11, 13})):
        named_of: list[set[int]] = [set() for _ in range(50)]
        for owner, row in zip(case.places.owner, case.near[kind].rows[:, 0], strict=True):
            named_of[owner].add(int(case.subwords.ids[row]))
        for key, caption_of in (("own", np.arange(50)), ("shuffled_speech", case.partner)):
            named = right = words = part = whole = 0
            for u in range(50):
                kept = [set(word.ids) - left_out for word in captions[caption_of[u]]]
                kept = [ids for ids in kept if ids]
                named += len(named_of[u])
                right += len(named_of[u] & set().union(*kept))
                words += len(kept)
                part += sum(bool(ids & named_of[u]) for ids in kept)
                whole += sum(ids <= named_of[u] for ids in kept)
            report = word_report(case, kind, captions)
            found = report if key == "own" else report[key]
            assert found["precision"] == pytest.approx(100 * right / named)
            assert found["recall"] == pytest.approx(100 * part / words)
            assert found["whole_words"] == pytest.approx(100 * whole / words)
            assert found["f1"] == pytest.approx(
                2 * found["precision"] * found["recall"] / (found["precision"] + found["recall"])
            )


def test_captions_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="no caption has a word"):
        word_report(case_of([[0]], [{10}]), "content", [[Word("the", (11,))]])
