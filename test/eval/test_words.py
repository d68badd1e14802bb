"""Keywords as a set: repetition, and the words they name, by hand and compared with plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from circle import circle_table, on_circle, padded

from speechclip.eval.gold import Word
from speechclip.eval.keywords import Settings, find_neighbours
from speechclip.eval.rates import KeywordIndex
from speechclip.eval.words import MEASURES, distinct_report, repetition, word_counts, word_report

COUNTS = {11: 9, 13: 8, 12: 7, 18: 6, 17: 5, 10: 4}


def case_of(degrees: list[list[float]], golds: list[set[int]], **settings: object):
    """Return keywords at the given angles, one list for each utterance."""
    longest = max(map(len, degrees))
    mask = np.arange(longest)[None, :] < np.array([[len(row)] for row in degrees])
    z = np.zeros((*mask.shape, 2))
    z[mask] = on_circle(*(angle for row in degrees for angle in row))
    options = Settings(**{"bootstrap": 0, **settings})
    return find_neighbours(z, mask, circle_table(), golds, [padded(*gold) for gold in golds], COUNTS, None, options)


def test_repetition_by_hand() -> None:
    places = KeywordIndex.of([[True, True, True], [True, True, False], [False, False, False]])
    # 5 keywords of two utterances: 4 4 7 repeats one, 4 5 repeats none
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
    # keyword 1 becomes 10 for 10, keyword 2 becomes 11 for 10, keyword 3 has no other: 10 11 12 | 10 10
    assert report["shuffled_speech"]["distinct"] == pytest.approx(2.0)
    assert distinct_report(case, "content", seed=0)["distinct"] == pytest.approx(2.0)
    # content subwords of training: 12 18 17 10 with the counts 7 6 5 4 of 22. There are 3 and 2 draws
    share = np.array([7, 6, 5, 4]) / 22
    expected = [(1 - (1 - share) ** n).sum() for n in (3, 2)]
    assert distinct_report(case, "content", 0)["frequency_prior"]["distinct"] == pytest.approx(np.mean(expected))


def test_distinct_intervals_by_hand() -> None:
    case = case_of([[0, 20], [0, 0]], [{10}, {10}], bootstrap=100)
    interval = distinct_report(case, "all", 0)["ci95"]
    assert interval["distinct"] == [1.0, 2.0]  # resamples have one image, the other, or both
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
    # "snowman", "dog", "cat" and "boat" are named, and a wrong word, 15. "the" is not named. Two are whole
    assert (report["n_named"], report["n_words"]) == (5, 5)
    assert [report[name] for name in MEASURES] == pytest.approx([80.0, 80.0, 80.0, 40.0, 40.0, 40.0])
    content = word_report(case, "content", CAPTIONS)  # "the" does not count
    assert (content["n_named"], content["n_words"]) == (5, 4)
    assert [content[name] for name in MEASURES] == pytest.approx([80.0, 100.0, 800 / 9, 40.0, 50.0, 400 / 9])
    # shuffled: 12 and 16 are not in "dog" and "boat"; 18, 10 and 15 are not in the first caption
    assert report["shuffled_speech"] == dict.fromkeys(MEASURES, 0.0)
    # the prior is 11, 13, 12: "the", "snowman" in part and a wrong word. All are wrong for the second caption
    prior = [100 * 2 / 6, 100 * 2 / 5, 100 * 4 / 11, 100 * 1 / 6, 100 * 1 / 5, 100 * 2 / 11]
    assert [report["frequency_prior"][name] for name in MEASURES] == pytest.approx(prior)
    # without stop words 12, 18, 17: "snowman" and two wrong words; "dog" whole, "boat" in part, a wrong word
    prior = [100 * 3 / 6, 100 * 3 / 4, 60.0, 100 * 1 / 6, 100 * 1 / 4, 20.0]
    assert [content["frequency_prior"][name] for name in MEASURES] == pytest.approx(prior)


def test_subwords_of_one_word_name_one_word() -> None:
    caption = [Word("snowman", (12, 14)), Word("cat", (16,))]

    def measured(*degrees: float) -> list[float]:
        report = word_report(case_of([list(degrees)], [{12, 14, 16}]), "all", [caption])
        return [report[name] for name in MEASURES]

    # "snow", "man" and a wrong word: one of two named words is right, one of two words is found, whole
    assert measured(20, 40, 50) == pytest.approx([50.0] * 6)
    # "snow" and a wrong word: named, not whole
    assert measured(20, 50) == pytest.approx([50.0, 50.0, 50.0, 0.0, 0.0, 0.0])
    # repeated keywords change nothing
    assert measured(20, 40, 50, 40, 50) == measured(20, 40, 50)
    # a subword of two words names both, and only "snow" whole
    shared = [Word("snowman", (12, 14)), Word("snow", (12,))]
    report = word_report(case_of([[20]], [{12, 14}]), "all", [shared])
    assert [report[name] for name in MEASURES] == pytest.approx([100.0, 100.0, 100.0, 50.0, 50.0, 50.0])
    assert (report["n_named"], report["n_words"]) == (2, 2)


def test_word_intervals_by_hand() -> None:
    case = case_of([[20, 60], [50, 50]], [{12, 16}, {18}], bootstrap=100)
    report = word_report(case, "all", [[Word("cat", (16,))], [Word("dog", (18,))]])
    # the first utterance names "cat" and a wrong word, the second a wrong word. Resamples have one, the other or both
    assert report["precision"] == pytest.approx(100 / 3)
    assert report["ci95"]["recall"] == [0.0, 100.0]
    assert report["ci95"]["precision"] == [0.0, 50.0]
    assert report["ci95"]["f1"] == pytest.approx([0.0, 200 / 3])
    assert report["ci95"]["whole_f1"] == report["ci95"]["f1"]


def test_words_equal_plain_loops() -> None:
    generator = np.random.default_rng(6)
    degrees = [generator.uniform(0, 80, generator.integers(0, 5)).tolist() for _ in range(50)]
    captions = [
        [Word(f"v{n}", tuple(generator.integers(10, 19, generator.integers(1, 4)).tolist())) for n in range(3)]
        for _ in range(50)
    ]
    case = case_of(degrees, [{10}] * 50)
    for kind, left_out in (("all", set()), ("content", {11, 13})):
        subwords_of: list[set[int]] = [set() for _ in range(50)]
        for owner, row in zip(case.index.owner, case.nearest[kind].rows[:, 0], strict=True):
            subwords_of[owner].add(int(case.subwords.ids[row]))
        report = word_report(case, kind, captions)
        for key, caption_of in (("own", np.arange(50)), ("shuffled_speech", case.shuffled_index)):
            rows = []
            for u in range(50):
                kept = [set(word.ids) - left_out for word in captions[caption_of[u]]]
                kept = [ids for ids in kept if ids]
                wrong = subwords_of[u] - set().union(*kept)
                part, whole = (sum(how(ids, subwords_of[u]) for ids in kept) for how in (_part, set.issubset))
                rows.append((len(wrong), part, whole, len(kept)))
            if key == "own":
                assert word_counts(case, kind, captions).tolist() == [list(row) for row in rows]
            wrong, part, whole, words = np.sum(rows, axis=0)
            found = report if key == "own" else report[key]
            for right, name in ((part, ""), (whole, "whole_")):
                precision, recall = right / (wrong + part), right / words
                assert found[f"{name}precision"] == pytest.approx(100 * precision)
                assert found[f"{name}recall"] == pytest.approx(100 * recall)
                assert found[f"{name}f1"] == pytest.approx(200 * precision * recall / (precision + recall))


def _part(ids: set[int], named: set[int]) -> bool:
    return bool(ids & named)


def test_captions_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="no caption has a word"):
        word_report(case_of([[0]], [{10}]), "content", [[Word("the", (11,))]])
