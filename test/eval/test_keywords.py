"""Keyword scores, on tables solved by hand and against plain loops."""

from __future__ import annotations

import json

import numpy as np
import pytest

from speechclip.eval.keywords import (
    Subwords,
    count_utterances,
    hit_rates,
    keyword_records,
    keyword_report,
    most_frequent,
    nearest,
    repetition,
)


def test_nearest_by_hand():
    table = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    index, cosine = nearest([[2.0, 0.1], [-1.0, 0.5]], table, 2)
    assert index.tolist() == [[0, 2], [3, 1]]
    assert cosine[1, 0] == pytest.approx(1 / np.sqrt(1.25))
    index, _ = nearest([[2.0, 0.1]], table, 2, exclude=np.array([True, False, False, False]))
    assert index.tolist() == [[2, 1]]


def test_nearest_prefers_the_first_of_equal_rows():
    assert nearest([[1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0], [2.0, 0.0]], 2)[0].tolist() == [[1, 2]]


def test_nearest_against_sorting(monkeypatch):
    generator = np.random.default_rng(0)
    z, table = generator.standard_normal((9, 4, 6)), generator.standard_normal((50, 6))
    exclude = generator.random(50) < 0.3
    monkeypatch.setattr("speechclip.eval.keywords.BLOCK_SCORES", 100)  # several blocks
    index, cosine = nearest(z, table, 5, exclude)
    assert index.shape == cosine.shape == (9, 4, 5)
    for u, k in np.ndindex(9, 4):
        every = table @ z[u, k] / np.linalg.norm(table, axis=1) / np.linalg.norm(z[u, k])
        order = [row for row in np.argsort(-every) if not exclude[row]][:5]
        assert index[u, k].tolist() == order
        assert cosine[u, k] == pytest.approx(every[order])


def test_nearest_refuses_what_it_cannot_answer():
    with pytest.raises(ValueError, match="3 neighbours asked for, 2 subwords are left"):
        nearest([[1.0]], [[1.0], [2.0], [3.0]], 3, exclude=np.array([True, False, False]))
    with pytest.raises(ValueError, match="z holds NaN"):
        nearest([[np.nan]], [[1.0]], 1)


def test_repetition_by_hand():
    rows = np.array([[4, 4, 7], [4, 5, 5], [1, 1, 1]])
    mask = np.array([[True, True, True], [True, True, False], [False, False, False]])
    # 5 keywords of two utterances; 4 4 7 repeats one, 4 5 none
    assert repetition(rows, mask) == {"keywords": 2.5, "distinct": 2.0, "duplicates": pytest.approx(20.0)}
    with pytest.raises(ValueError, match="no utterance has a keyword"):
        repetition(rows, np.zeros((3, 3), dtype=bool))


def test_hit_rates_by_hand():
    neighbours = [[[1, 2], [3, 4]], [[1, 2], [9, 9]], [[5, 6], [7, 1]]]
    mask = [[True, True], [True, False], [True, True]]
    # kw1: hit, miss, hit of three; kw2: miss, absent, hit
    assert hit_rates(neighbours, mask, [{2}, {9}, {1, 6}]) == pytest.approx(
        {"kw1": 200 / 3, "kw2": 50.0, "avg": (200 / 3 + 50) / 2}
    )
    # an utterance without gold is not counted
    assert hit_rates(neighbours, mask, [{2}, set(), {1}]) == pytest.approx({"kw1": 50.0, "kw2": 50.0, "avg": 50.0})


def test_hit_rates_leave_out_a_keyword_nobody_has():
    assert hit_rates([[[1], [2]]], [[True, False]], [{1}]) == {"kw1": 100.0, "avg": 100.0}
    with pytest.raises(ValueError, match="no utterance"):
        hit_rates([[[1]]], [[True]], [set()])
    with pytest.raises(ValueError, match="do not fit"):
        hit_rates([[[1]]], [[True, True]], [{1}])


def test_hit_rates_against_loops():
    generator = np.random.default_rng(2)
    found, mask = generator.integers(0, 40, (60, 5, 3)), generator.random((60, 5)) < 0.8
    gold = [frozenset(generator.integers(0, 40, generator.integers(0, 6)).tolist()) for _ in range(60)]
    rates = hit_rates(found, mask, gold)
    for k in range(5):
        hits = [bool(gold[u] & set(found[u, k].tolist())) for u in range(60) if mask[u, k] and gold[u]]
        assert rates[f"kw{k + 1}"] == pytest.approx(100 * sum(hits) / len(hits))
    assert rates["avg"] == pytest.approx(np.mean([rates[f"kw{k}"] for k in range(1, 6)]))


def test_most_frequent_subwords():
    counts = count_utterances([[1, 1, 2], [2, 3], {2, 1}, [99]])
    assert counts == {1: 2, 2: 3, 3: 1, 99: 1}
    subwords = Subwords(np.eye(4), np.array([3, 2, 1, 0]), frozenset({0}), frozenset({2}))
    assert most_frequent(counts, subwords, 2, {0}) == [2, 1]  # 99 is not in the table
    assert most_frequent(counts, subwords, 2, {0, 2}) == [1, 3]
    assert most_frequent({1: 4, 3: 4}, subwords, 1, set()) == [1]
    with pytest.raises(ValueError, match="hold 3 of the table"):
        most_frequent(counts, subwords, 4, {0})


# a table on a circle: ids 10, 11, ... stand every 10 degrees from 0; PAD, SOT and EOT lie between the first ones
PAD, SOT, EOT = 0, 98, 99
ANGLES = {PAD: 4.0, SOT: 1.0, EOT: 2.0, **{10 + i: 10.0 * i for i in range(9)}}


def on_circle(*degrees):
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=-1)


@pytest.fixture
def circle():
    ids = np.array(sorted(ANGLES, reverse=True))  # rows are not in the order of the ids
    return Subwords(on_circle(*(ANGLES[i] for i in ids)), ids, frozenset({PAD, SOT, EOT}), frozenset({11, 13}))


def padded(*content):
    return {SOT, EOT, PAD, *content}


COUNTS = {11: 9, 13: 8, 12: 7, 18: 6, 17: 5, 10: 4, PAD: 100}


def test_clean_and_reference_differ_where_they_should(circle):
    z = on_circle(1.0)[None, :, :]  # one utterance, one keyword, on top of SOT: quantised to 10, at 0 degrees
    report = keyword_report(z, [[True]], circle, [{16}], [padded(16)], COUNTS)
    # clean: 10 to 14; the caption's only subword is 16: a miss. Reference: SOT, EOT and PAD are near and "gold"
    assert report["clean"] == {"kw1": 0.0, "avg": 0.0}
    assert report["reference"] == {"kw1": 100.0, "avg": 100.0}
    report = keyword_report(z, [[True]], circle, [{14}], [{14}], COUNTS)
    # without special tokens in the gold: the special neighbours take places, 14 is the fifth no longer
    assert report["clean"]["kw1"] == 100.0
    assert report["reference"]["kw1"] == 0.0


def test_reference_looks_around_the_quantised_vector(circle):
    z = on_circle(45.4)[None, :, :]  # nearest 15 (50), 14, 16, 13, 17; from 15 itself: 15, 14, 16, 13, 17
    away = 3.0 * on_circle(54.9)[None, :, :]  # nearest 15, 16, 14, 17, 13; quantised the same
    for vector in (z, away):
        assert keyword_report(vector, [[True]], circle, [{17}], [{17}], COUNTS)["reference"]["kw1"] == 100.0
    z = on_circle(34.9)[None, :, :]  # nearest 13, 14, 12, 15, 11; from 13: 13, then 12/14, then 11/15
    report = keyword_report(z, [[True]], circle, [{16}], [{16}], COUNTS)
    assert (report["clean"]["kw1"], report["reference"]["kw1"]) == (0.0, 0.0)
    z = on_circle(-60.0)[None, :, :]  # nearest 10 to 14, for 10 itself SOT, EOT and PAD take places
    report = keyword_report(z, [[True]], circle, [{12}], [{12}], COUNTS)
    assert (report["clean"]["kw1"], report["reference"]["kw1"]) == (100.0, 0.0)


def test_content_top1_ignores_stop_words_on_both_sides(circle):
    z = on_circle(11.0, 29.0)[:, None, :]  # on top of the stop words 11 and 13; content neighbours 12 (20°) and 12
    report = keyword_report(z, [[True], [True]], circle, [{11, 12}, {13, 14}], [padded(), padded()], COUNTS)
    assert report["content_top1"] == {"kw1": 50.0, "avg": 50.0}
    assert report["clean"]["kw1"] == 100.0
    # an utterance of stop words alone is not counted
    report = keyword_report(z, [[True], [True]], circle, [{11, 12}, {13, 11}], [padded(), padded()], COUNTS)
    assert report["content_top1"] == {"kw1": 100.0, "avg": 100.0}
    assert report["n_utterances"] == {"clean": 2, "reference": 2, "content_top1": 1}


def test_prior_needs_no_speech(circle):
    golds = [{11}, {16}, {12, 16}, {13}]
    padded_golds = [padded(*gold) for gold in golds]
    z = np.random.default_rng(0).standard_normal((4, 2, 2))
    prior = keyword_report(z, np.ones((4, 2)), circle, golds, padded_golds, COUNTS)["frequency_prior"]
    # 11, 13, 12, 18, 17 hit utterances 0, 2 and 3; the most frequent content subword, 12, one of the two with content
    assert prior["clean"] == {"kw1": 75.0, "kw2": 75.0, "avg": 75.0}
    assert prior["reference"] == prior["clean"]
    assert prior["content_top1"] == {"kw1": 50.0, "kw2": 50.0, "avg": 50.0}


def test_a_variable_number_of_keywords(circle):
    z = on_circle(0.0, 80.0, 40.0, 40.0).reshape(2, 2, 2)
    z[1, 1] = np.nan  # absent: never looked at
    report = keyword_report(z, [[True, True], [True, False]], circle, [{18}, {14}], [padded(18), padded(14)], COUNTS)
    assert report["clean"] == {"kw1": 50.0, "kw2": 100.0, "avg": 75.0}
    assert report["frequency_prior"]["clean"] == {"kw1": 50.0, "kw2": 100.0, "avg": 75.0}
    assert list(report) == ["clean", "reference", "content_top1", "frequency_prior", "repetition", "n_utterances"]
    assert report["repetition"] == {"keywords": 1.5, "distinct": 1.5, "duplicates": 0.0}
    assert json.loads(json.dumps(report)) == report


def test_report_refuses_arrays_that_do_not_fit(circle):
    with pytest.raises(ValueError, match="do not fit"):
        keyword_report(np.zeros((1, 1, 2)), [[True]], circle, [{10}], [], COUNTS)
    with pytest.raises(ValueError, match="mask"):
        keyword_report(np.zeros((1, 1, 2)), [[True, True]], circle, [{10}], [{10}], COUNTS)


def test_records(circle):
    z = on_circle(1.0, 80.0, 40.0, 0.0).reshape(2, 2, 2)
    records = list(
        keyword_records(
            ["u1", "u2"],
            ["a dog", "a cat"],
            z,
            [[True, True], [True, False]],
            [np.array([[0.1, 0.8, 0.1], [0.0, 0.0, 1.0]]), np.array([[1.0], [1.0]])],
            0.02,
            circle,
            {i: f"w{i}</w>" for i in ANGLES},
            k=2,
        )
    )
    assert [(r["utterance"], r["keyword"], r["caption"]) for r in records] == [
        ("u1", 1, "a dog"),
        ("u1", 2, "a dog"),
        ("u2", 1, "a cat"),
    ]
    assert records[0]["neighbours"] == [
        {"subword": "w10</w>", "id": 10, "cosine": 0.9998},
        {"subword": "w11</w>", "id": 11, "cosine": 0.9877},
    ]
    assert [r["span"] for r in records] == [[0.02, 0.04], [0.04, 0.06], [0.0, 0.02]]
    assert json.loads(json.dumps(records[0])) == records[0]
