"""Hit rates of keywords, by hand and compared with plain loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
from circle import PAD, circle_table, on_circle, padded

from speechclip.eval.keywords import Settings, find_neighbours, score
from speechclip.eval.neighbours import Subwords

COUNTS = {11: 9, 13: 8, 12: 7, 18: 6, 17: 5, 10: 4, PAD: 100}


def keyword_report(z, mask, table, gold, gold_reference, counts, words=None, images=None, settings=None):
    """Find the neighbours and score them."""
    settings = settings or Settings()
    return score(find_neighbours(z, mask, table, gold, gold_reference, counts, images, settings), words, settings)


@pytest.fixture
def circle():
    return circle_table()


def test_special_tokens_count_in_reference_only(circle):
    z = on_circle(1.0)[None, :, :]  # one keyword, at the place of SOT. It is quantised to 10, at 0 degrees
    report = keyword_report(z, [[True]], circle, [{16}], [padded(16)], COUNTS)
    # clean: the neighbours are 10 to 14, the caption has only 16, so it misses. Reference: SOT, EOT and PAD hit
    assert report["clean"] == {"kw1": 0.0, "avg": 0.0}
    assert report["reference"] == {"kw1": 100.0, "avg": 100.0}
    report = keyword_report(z, [[True]], circle, [{14}], [{14}], COUNTS)
    # without special tokens in the gold set: special neighbours displace 14
    assert report["clean"]["kw1"] == 100.0
    assert report["reference"]["kw1"] == 0.0


def test_reference_uses_the_quantised_vector(circle):
    z = on_circle(45.4)[None, :, :]  # nearest 15 (50 degrees), 14, 16, 13, 17. Nearest to 15: 15, 14, 16, 13, 17
    away = 3.0 * on_circle(54.9)[None, :, :]  # nearest 15, 16, 14, 17, 13. It is quantised to 15 too
    for vector in (z, away):
        assert keyword_report(vector, [[True]], circle, [{17}], [{17}], COUNTS)["reference"]["kw1"] == 100.0
    z = on_circle(34.9)[None, :, :]  # nearest 13, 14, 12, 15, 11. Nearest to 13: 13, then 12 and 14, then 11 and 15
    report = keyword_report(z, [[True]], circle, [{16}], [{16}], COUNTS)
    assert (report["clean"]["kw1"], report["reference"]["kw1"]) == (0.0, 0.0)
    z = on_circle(-60.0)[None, :, :]  # nearest 10 to 14. Nearest to 10: SOT, EOT and PAD too
    report = keyword_report(z, [[True]], circle, [{12}], [{12}], COUNTS)
    assert (report["clean"]["kw1"], report["reference"]["kw1"]) == (100.0, 0.0)


def test_content_top1_ignores_stop_words(circle):
    z = on_circle(11.0, 29.0)[:, None, :]  # near the stop words 11 and 13. The nearest content subword of both is 12
    report = keyword_report(z, [[True], [True]], circle, [{11, 12}, {13, 14}], [padded(), padded()], COUNTS)
    assert report["content_top1"] == {"kw1": 50.0, "avg": 50.0}
    assert report["clean"]["kw1"] == 100.0
    # an utterance of stop words does not count
    report = keyword_report(z, [[True], [True]], circle, [{11, 12}, {13, 11}], [padded(), padded()], COUNTS)
    assert report["content_top1"] == {"kw1": 100.0, "avg": 100.0}
    assert report["n_utterances"] == {"clean": 2, "reference": 2, "content_top1": 1}
    assert report["n_keywords"]["content_top1"] == {"kw1": 1, "avg": 1}


def test_frequency_prior_by_hand(circle):
    golds = [{11}, {16}, {12, 16}, {13}]
    padded_golds = [padded(*gold) for gold in golds]
    z = np.random.default_rng(0).standard_normal((4, 2, 2))
    prior = keyword_report(z, np.ones((4, 2)), circle, golds, padded_golds, COUNTS)["frequency_prior"]
    # 11, 13, 12, 18, 17 hit utterances 0, 2 and 3. 12 hits one of the two utterances with content
    assert prior["clean"] == {"kw1": 75.0, "kw2": 75.0, "avg": 75.0}
    assert prior["reference"] == prior["clean"]
    assert prior["content_top1"] == {"kw1": 50.0, "kw2": 50.0, "avg": 50.0}


def test_utterances_may_differ_in_keywords(circle):
    z = on_circle(0.0, 80.0, 40.0, 40.0).reshape(2, 2, 2)
    z[1, 1] = np.nan  # absent, so it is not read
    report = keyword_report(z, [[True, True], [True, False]], circle, [{18}, {14}], [padded(18), padded(14)], COUNTS)
    assert report["clean"] == pytest.approx({"kw1": 50.0, "kw2": 100.0, "avg": 200 / 3})
    assert report["frequency_prior"]["clean"] == pytest.approx({"kw1": 50.0, "kw2": 100.0, "avg": 200 / 3})
    assert list(report)[:4] == ["clean", "reference", "content_top1", "frequency_prior"]
    assert report["n_utterances"] == {"clean": 2, "reference": 2, "content_top1": 2}
    assert report["n_keywords"] == dict.fromkeys(report["n_utterances"], {"kw1": 2, "kw2": 1, "avg": 3})
    assert report["repetition"] == {"keywords": 1.5, "distinct": 1.5, "duplicates": 0.0}
    assert json.loads(json.dumps(report)) == report


def test_arrays_that_do_not_fit_are_refused(circle):
    with pytest.raises(ValueError, match="do not fit"):
        keyword_report(np.zeros((1, 1, 2)), [[True]], circle, [{10}], [], COUNTS)
    with pytest.raises(ValueError, match="mask"):
        keyword_report(np.zeros((1, 1, 2)), [[True, True]], circle, [{10}], [{10}], COUNTS)


def report_of(table, degrees, golds, counts=COUNTS, **settings):
    """Return the report of utterances with one keyword each."""
    z = on_circle(*degrees)[:, None, :]
    words = [[(f"w{i}", (i,)) for i in sorted(gold)] for gold in golds]
    return keyword_report(
        z, np.ones((len(z), 1)), table, golds, [padded(*gold) for gold in golds], counts, words, None,
        Settings(**settings),
    )  # fmt: skip


def test_sweep_by_hand(circle):
    # neighbours 10, 11, 12, 13, 14, without stop words 10, 12, 14. The captions have the first, the fifth and no one
    report = report_of(circle, [0.0, 0.0, 0.0], [{10}, {14}, {16}], sweep=(5, 1, 3, 100), bootstrap=0)
    assert list(report["sweep"]["all"]) == ["1", "3", "5"]  # the table has fewer than 100 subwords
    rates = {k: row["avg"] for k, row in report["sweep"]["all"].items()}
    assert rates == pytest.approx({"1": 100 / 3, "3": 100 / 3, "5": 200 / 3})
    assert {k: row["avg"] for k, row in report["sweep"]["content"].items()} == pytest.approx(
        {"1": 100 / 3, "3": 200 / 3}  # the training captions have four content subwords
    )
    # the prior for 1, 3 and 5: 11; 11, 13, 12; 11, 13, 12, 18, 17
    assert [row["frequency_prior"]["avg"] for row in report["sweep"]["all"].values()] == [0, 0, 0]
    assert report["sweep"]["all"]["5"]["kw1"] == report["clean"]["kw1"]
    assert report["sweep"]["content"]["1"]["kw1"] == report["content_top1"]["kw1"]
    assert "ci95" not in report["sweep"]["all"]["1"]


def test_reference_sweep_by_hand(circle):
    # quantised to 10, with neighbours 10, SOT, EOT, PAD, 11, 12. The padded captions have 16 and special tokens
    report = report_of(circle, [-60.0, -60.0], [{16}, {16}], sweep=(1, 2, 12), bootstrap=0)
    rates = {k: row["avg"] for k, row in report["reference_sweep"]["all"].items()}
    assert rates == {"1": 0.0, "2": 100.0}  # the training captions have fewer than 12 subwords
    # special tokens are neighbours in both. The fifth neighbour is 11, or 12 without stop words
    z, counts = on_circle(-60.0, -60.0, -60.0)[:, None, :], {**COUNTS, 14: 1, 15: 1, 16: 1}
    sets, settings = [{11}, {12}, {10, 13}], Settings((1, 3, 4, 5), bootstrap=0)
    report = keyword_report(z, np.ones((3, 1)), circle, [{12}] * 3, sets, counts, settings=settings)
    sweep = report["reference_sweep"]
    rates = {kind: [row["avg"] for row in rows.values()] for kind, rows in sweep.items()}
    assert rates["all"] == pytest.approx([100 / 3, 100 / 3, 100 / 3, 200 / 3])
    assert rates["content"] == [50.0, 50.0, 50.0, 100.0]  # the first caption has only a stop word, so it does not count
    # the prior is 11, 13, 12, ..., and 12, 18, 17, 10 without stop words
    prior = {kind: [row["frequency_prior"]["avg"] for row in rows.values()] for kind, rows in sweep.items()}
    assert prior["all"] == pytest.approx([100 / 3, 100, 100, 100])
    assert prior["content"] == [50.0, 50.0, 100.0, 100.0]
    assert all("shuffled_speech" in row for rows in sweep.values() for row in rows.values())


def test_reference_equals_plain_loops():
    generator = np.random.default_rng(5)
    ids, special, stop = np.arange(20, 50), frozenset({20, 21, 22}), frozenset({30, 31, 32, 33})
    table = Subwords(generator.standard_normal((30, 3)), ids, special, stop)
    z = generator.standard_normal((60, 1, 3))
    padded_ids = [set(generator.choice(ids, 2).tolist()) for _ in range(60)]
    counts, settings = dict.fromkeys(ids.tolist(), 1), Settings((1, 2, 5, 7), bootstrap=0)
    report = keyword_report(z, np.ones((60, 1)), table, [{40}] * 60, padded_ids, counts, settings=settings)
    unit = table.embeddings / np.linalg.norm(table.embeddings, axis=1, keepdims=True)

    def nearest_to(vector, left_out):
        return [int(ids[row]) for row in np.argsort(-(unit @ vector)) if ids[row] not in left_out]

    for kind, left_out in (("all", frozenset()), ("content", stop)):
        for k in (1, 2, 5, 7):
            hits = []
            for vector, gold in zip(z[:, 0], padded_ids, strict=True):
                around = nearest_to(unit[nearest_to(vector, special)[0] - 20], left_out)[:k]
                hits += [bool(gold & set(around))] if gold - left_out else []
            assert report["reference_sweep"][kind][str(k)]["avg"] == pytest.approx(100 * np.mean(hits))


def test_named_scores_are_part_of_the_sweeps(circle):
    generator = np.random.default_rng(8)
    golds = [set(generator.integers(10, 19, 3).tolist()) | {12} for _ in range(40)]
    report = report_of(circle, generator.uniform(0, 80, 40), golds, bootstrap=30)
    cells = {"clean": report["sweep"]["all"]["5"], "content_top1": report["sweep"]["content"]["1"]}
    cells["reference"] = report["reference_sweep"]["all"]["5"]
    for name, cell in cells.items():
        for extra in ("frequency_prior", "shuffled_speech", "ci95"):
            assert cell[extra] == report[extra][name]
        assert {key: cell[key] for key in ("kw1", "avg")} == report[name]
    assert report["flaws"]["clean"]["avg"] == report["clean"]["avg"]
    assert report["flaws"]["special_tokens+quantised"]["avg"] == report["reference"]["avg"]


def test_shuffled_speech_by_hand(circle):
    # two images: the other caption is that of the other image
    report = report_of(circle, [0.0, 80.0], [{10, 11}, {14}], bootstrap=0)
    # both hit their own caption. Shuffled: 14 is near 0 degrees, 10 and 11 are not near 80 degrees
    assert report["clean"]["avg"] == 100.0
    assert report["shuffled_speech"]["clean"]["avg"] == 50.0
    assert report["shuffled_speech"]["content_top1"]["avg"] == 0.0
    assert report["content_top1"]["avg"] == 50.0
    assert "shuffled_speech" not in report_of(circle, [0.0], [{10}], bootstrap=0)  # one image has no other caption


def test_intervals_by_hand(circle):
    # one of two utterances hits. Resamples hit in none, one or both, so the interval is 0 to 100
    report = report_of(circle, [0.0, 80.0], [{10}, {10}], bootstrap=200)
    assert report["clean"]["avg"] == 50.0
    assert report["ci95"]["clean"] == {"kw1": [0.0, 100.0], "avg": [0.0, 100.0]}
    certain = report_of(circle, [0.0, 1.0], [{10}, {10}], bootstrap=200)
    assert certain["ci95"]["clean"]["kw1"] == [100.0, 100.0]


def test_gold_cosine_by_hand(circle):
    report = report_of(circle, [5.0, 30.0], [{11, 12}, {14}], bootstrap=50)
    cosine = {angle: np.cos(np.deg2rad(angle)) for angle in (5, 10, 15, 40)}
    # all: from 5 to 11 at 10, from 30 to 14 at 40 degrees. Content: from 5 to 12 at 20
    assert report["gold_cosine"]["all"]["kw1"] == pytest.approx((cosine[5] + cosine[10]) / 2)
    assert report["gold_cosine"]["content"]["avg"] == pytest.approx((cosine[15] + cosine[10]) / 2)
    low, high = report["gold_cosine"]["content"]["ci95"]["avg"]
    assert (low, high) == pytest.approx((cosine[15], cosine[10]))
    # shuffled: from 5 to 14 at 40, from 30 to 12 at 20 (content)
    assert report["gold_cosine"]["content"]["shuffled_speech"]["avg"] == pytest.approx(
        (np.cos(np.deg2rad(35)) + cosine[10]) / 2
    )
    # the keyword of the prior is 11 at 10 degrees, and 12 at 20 without stop words
    assert report["gold_cosine"]["all"]["frequency_prior"]["avg"] == pytest.approx((1 + np.cos(np.deg2rad(30))) / 2)
    assert report["gold_cosine"]["content"]["frequency_prior"]["avg"] == pytest.approx((1 + np.cos(np.deg2rad(20))) / 2)


def test_unknown_subwords_have_no_gold_cosine(circle):
    report = report_of(circle, [5.0, 30.0], [{55}, {14}], bootstrap=0)
    assert report["gold_cosine"]["all"]["kw1"] == pytest.approx(np.cos(np.deg2rad(10)))


def test_report_can_be_written_as_json(circle):
    generator = np.random.default_rng(3)
    z, mask = generator.standard_normal((30, 6, 2)), np.arange(6)[None, :] < generator.integers(0, 7, 30)[:, None]
    golds = [set(generator.integers(10, 19, 4).tolist()) for _ in range(30)]
    words = [[(f"w{i}", (i,)) for i in gold] for gold in golds]
    report = keyword_report(
        z, mask, circle, golds, [padded(*gold) for gold in golds], COUNTS, words, np.arange(30) // 5, Settings((1, 3))
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    shuffled = keyword_report(
        z, mask, circle, golds, [padded(*gold) for gold in golds], COUNTS, words, np.arange(30) // 5, Settings((1, 3))
    )
    assert shuffled == report  # all draws are seeded
