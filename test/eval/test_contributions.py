"""Contributions of utterances to the keyword scores: their sums, and paired tests of two runs."""

from __future__ import annotations

import numpy as np
import pytest
from circle import circle_table, on_circle, padded

from speechclip.eval.contributions import contributions, paired_keyword_tests
from speechclip.eval.gold import Word
from speechclip.eval.keywords import Settings, find_neighbours, score
from speechclip.eval.words import word_measures

COUNTS = {11: 9, 13: 8, 12: 7, 18: 6, 17: 5, 10: 4}
IDS = [f"u{number}" for number in range(30)]
IMAGES = [f"i{number // 2}" for number in range(30)]


def data_of(seed: int):
    """Return 30 utterances with up to four keywords, and the words of the captions. The seed changes keywords only."""
    generator = np.random.default_rng(0)
    words = [[Word(f"w{i}", (i, i + 1)) for i in generator.integers(10, 18, 3)] for _ in IDS]
    golds = [{identity for word in caption for identity in word.ids} for caption in words]
    golds[0] = set()
    generator = np.random.default_rng(seed)
    mask = np.arange(4)[None, :] < generator.integers(0, 5, len(IDS))[:, None]
    z = on_circle(*generator.uniform(-90, 90, mask.size)).reshape(*mask.shape, 2)
    reference = [padded(*gold) if number else set() for number, gold in enumerate(golds)]
    images = [int(name[1:]) for name in IMAGES]
    return find_neighbours(z, mask, circle_table(), golds, reference, COUNTS, images, Settings(bootstrap=0)), words


def test_contributions_sum_to_the_scores() -> None:
    data, words = data_of(1)
    found, report = contributions(data, words), score(data, words, Settings(bootstrap=0))
    for name in ("clean", "reference", "content_top1"):
        hits, counted = found[name].sum(axis=0)
        assert 100 * hits / counted == pytest.approx(report[name]["avg"])
        assert counted == report["n_keywords"][name]["avg"]
        assert found[name][0].tolist() == [0, 0]  # its caption is empty
    for kind in ("all", "content"):
        cosines, counted = found[f"gold_cosine {kind}"].sum(axis=0)
        assert cosines / counted == pytest.approx(report["gold_cosine"][kind]["avg"])
        measured = word_measures(found[f"words {kind}"].sum(axis=0))
        assert measured[2] == pytest.approx(report["words"][kind]["f1"])
    assert len(found) == 7 and all(len(rows) == len(IDS) for rows in found.values())


def arrays_of(seed: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    """The content of keywords.npz."""
    found = contributions(*data_of(seed))
    arrays = {"ids": np.array(IDS), "images": np.array(IMAGES), **found}
    return {name: array[rows] for name, array in arrays.items()}


def test_paired_tests_cover_every_score() -> None:
    arrays = [arrays_of(seed) for seed in (1, 2)]
    tests = paired_keyword_tests(*arrays, n=50, seed=3)
    reports = [score(*data_of(seed), Settings(bootstrap=0)) for seed in (1, 2)]
    for key, report in zip(("first", "second"), reports, strict=True):
        assert tests["clean"][key] == pytest.approx(report["clean"]["avg"])
        assert tests["gold_cosine content"][key] == pytest.approx(report["gold_cosine"]["content"]["avg"])
        assert tests["words content whole_recall"][key] == pytest.approx(report["words"]["content"]["whole_recall"])
    assert len(tests) == 3 + 2 + 2 * 6
    for row in tests.values():
        assert row["difference"] == pytest.approx(row["first"] - row["second"])
        assert row["ci95"][0] <= row["difference"] <= row["ci95"][1] and 0 < row["p"] <= 1
    assert tests == paired_keyword_tests(*arrays, n=50, seed=3)
    assert all(row["p"] == 1.0 for row in paired_keyword_tests(arrays[0], arrays[0], n=50).values())


def test_paired_tests_use_the_common_utterances() -> None:
    whole, part = arrays_of(1), arrays_of(1, slice(12, 4, -1))
    tests = paired_keyword_tests(whole, part, n=20)
    assert tests["clean"]["difference"] == 0.0  # rows are matched by id, not by position
    hits, counted = contributions(*data_of(1))["clean"][5:13].sum(axis=0)
    assert tests["clean"]["first"] == pytest.approx(100 * hits / counted)
    assert paired_keyword_tests(part, arrays_of(1, slice(20, 25)), n=20) == {}
