"""Retrieval scores, on matrices solved by hand and compared with plain loops and enumeration."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

import speechclip.data.mapped as mapped
from speechclip.eval import ranking
from speechclip.eval.ranking import ranks_from_scores
from speechclip.eval.retrieval import (
    bootstrap_ci,
    branch_report,
    chance,
    evaluate,
    first_hit_ranks,
    recall_table,
    retrieval_report,
)


def scored(scores):
    """Return queries and a gallery whose dot products are the given matrix."""
    matrix = np.asarray(scores, dtype=np.float32)
    return matrix, np.eye(matrix.shape[1], dtype=np.float32)


def slow_ranks(queries, gallery, relevant):
    """Sort the gallery of every query, irrelevant items first in ties, and find the first hit."""
    ranks = []
    for query, wanted in zip(queries, relevant, strict=True):
        order = sorted(range(len(gallery)), key=lambda g: (-float(query @ gallery[g]), wanted[g]))
        ranks.append(1 + next(place for place, g in enumerate(order) if wanted[g]))
    return ranks


def test_ranks_by_hand():
    queries, gallery = scored([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    assert first_hit_ranks(queries, gallery, [0, 1, 2], [0, 1, 2]).tolist() == [1, 3, 2]


def test_rank_is_that_of_the_best_relevant_item():
    queries, gallery = scored([[0.1, 0.9, 0.8, 0.2], [0.9, 0.1, 0.2, 0.8]])
    assert first_hit_ranks(queries, gallery, [0, 0], [0, 1, 0, 0]).tolist() == [2, 1]


def test_ties_count_against_the_system():
    queries, gallery = scored([[0.5, 0.5, 0.5], [0.5, 0.5, 0.2], [0.0, 0.0, 0.0]])
    # ties with two irrelevant items: rank 3; with one: rank 2; a relevant item does not count against another
    assert first_hit_ranks(queries, gallery, [0, 0, 7], [0, 1, 7]).tolist() == [3, 2, 3]
    assert first_hit_ranks(queries[:1], gallery, [0], [0, 0, 1]).tolist() == [2]
    assert first_hit_ranks(queries[:1], gallery, [0], [0, 0, 0]).tolist() == [1]


def test_ranks_of_a_transposed_view_equal_a_copy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "BLOCK_ITEMS", 7)  # the items are not a multiple of the block
    scores = np.random.default_rng(3).integers(0, 30, (60, 12)).astype(np.float32)  # with ties
    owner = np.repeat(np.arange(12), 5)
    expected = ranks_from_scores(scores.T.copy(), owner, np.arange(60))
    assert not scores.T.flags.c_contiguous and len(np.unique(expected)) > 5
    assert ranks_from_scores(scores.T, owner, np.arange(60)).tolist() == expected.tolist()
    assert expected.tolist() == slow_ranks(scores.T.copy(), np.eye(60), [owner == at for at in range(12)])


def test_equal_gallery_rows_tie_with_any_rounding():
    generator = np.random.default_rng(3)
    row = generator.standard_normal(513, dtype=np.float32)
    gallery = np.repeat(row[None], 67, axis=0)
    queries = generator.standard_normal((5, 513), dtype=np.float32)
    for answer in (0, 31, 66):
        groups = np.ones(67, dtype=int)
        groups[answer] = 0
        assert first_hit_ranks(queries, gallery, np.zeros(5, dtype=int), groups).tolist() == [67] * 5
    zeros = np.array([[0.0], [-0.0]], dtype=np.float32)
    assert first_hit_ranks([[1.0]], zeros, [0], [0, 1]).tolist() == [2]


@pytest.mark.parametrize("block", [None, 1, 7, 1000])
@pytest.mark.parametrize("levels", [0, 3])
def test_ranks_equal_a_sort(block, levels):
    generator = np.random.default_rng(levels)
    queries, gallery = generator.standard_normal((40, 4)), generator.standard_normal((30, 4))
    if levels:  # few values give many ties
        queries, gallery = np.round(queries), np.round(gallery)
    query_groups = generator.integers(0, 6, 40)
    gallery_groups = np.concatenate([np.arange(6), generator.integers(0, 6, 24)])
    relevant = query_groups[:, None] == gallery_groups
    ranks = first_hit_ranks(queries, gallery, query_groups, gallery_groups, block=block)
    assert ranks.tolist() == slow_ranks(queries, gallery, relevant)


def test_two_columns_of_groups_accept_either():
    generator = np.random.default_rng(1)
    queries, gallery = generator.standard_normal((20, 3)), generator.standard_normal((20, 3))
    groups = generator.integers(0, 8, (20, 2))
    relevant = (groups[:, None, :] == groups[None, :, :]).any(axis=2)
    assert first_hit_ranks(queries, gallery, groups, groups).tolist() == slow_ranks(queries, gallery, relevant)


def test_bad_arrays_are_refused():
    queries, gallery = scored([[0.9, 0.1], [0.9, 0.1]])
    with pytest.raises(ValueError, match="query 1 has no relevant item"):
        first_hit_ranks(queries, gallery, [0, 5], [0, 1])
    with pytest.raises(ValueError, match="query 1 has no relevant item"):
        chance([0, 5], [0, 1])
    with pytest.raises(ValueError, match="queries: row 1 contains NaN"):
        first_hit_ranks([[0, 1], [np.nan, 0]], gallery, [0, 1], [0, 1])
    with pytest.raises(ValueError, match="gallery"):
        first_hit_ranks(queries, np.zeros((2, 3)), [0, 1], [0, 1])
    with pytest.raises(ValueError, match="query_groups"):
        first_hit_ranks(queries, gallery, [0], [0, 1])
    with pytest.raises(ValueError, match="block"):
        first_hit_ranks(queries, gallery, [0, 1], [0, 1], block=0)
    with pytest.raises(ValueError, match="no ranks"):
        recall_table([])


def test_recall_table_by_hand():
    table = recall_table([1, 2, 5, 6, 10, 11, 1, 100])
    assert table == pytest.approx(
        {
            "R@1": 25.0,
            "R@5": 50.0,
            "R@10": 75.0,
            "MRR": 100 * (1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 10 + 1 / 11 + 1 + 1 / 100) / 8,
        }
    )


def test_chance_by_hand():
    assert chance([0], [0, 1, 2, 3]) == pytest.approx(
        {"R@1": 25, "R@5": 100, "R@10": 100, "MRR": 100 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4}
    )
    # the published number: one relevant item among 5,000
    table = chance(np.zeros(1, dtype=int), np.arange(5000))
    assert [table[k] for k in ("R@1", "R@5", "R@10")] == pytest.approx([0.02, 0.1, 0.2])


def test_chance_equals_all_orders():
    gallery_groups = [0, 0, 1, 2, 2, 2, 3]
    query_groups = [0, 1, 2, 2]
    total = dict.fromkeys(["R@1", "R@5", "R@10", "MRR"], 0.0)
    for order in itertools.permutations(gallery_groups):
        for name, value in recall_table([1 + order.index(q) for q in query_groups]).items():
            total[name] += value / math.factorial(len(gallery_groups))
    assert chance(query_groups, gallery_groups) == pytest.approx(total)


def test_chance_of_two_column_groups():
    groups = np.array([[0, 0], [0, 1], [1, 0], [2, 2]])
    # the four queries have 3, 2, 2 and 1 relevant items
    assert chance(groups, groups)["R@1"] == pytest.approx(100 * (3 + 2 + 2 + 1) / 16)


def test_random_embeddings_reach_chance():
    generator = np.random.default_rng(0)
    groups = np.arange(3000) // 3
    ranks = first_hit_ranks(
        generator.standard_normal((3000, 16)), generator.standard_normal((3000, 16)), groups, groups
    )
    expected = chance(groups, groups)
    for name, (low, high) in bootstrap_ci(ranks, groups, level=0.9999).items():
        assert low <= expected[name] <= high


def test_bootstrap_of_degenerate_samples():
    assert bootstrap_ci([1, 1, 1], [0, 1, 2])["R@1"] == [100.0, 100.0]
    assert bootstrap_ci([3, 20], [4, 4]) == {
        "R@1": [0.0, 0.0],
        "R@5": [50.0, 50.0],
        "R@10": [50.0, 50.0],
        "MRR": pytest.approx([100 * (1 / 3 + 1 / 20) / 2] * 2),
    }


def test_bootstrap_resamples_clusters_not_queries():
    ranks = np.repeat([1, 50], 500)
    together = bootstrap_ci(ranks, np.repeat([0, 1], 500))["R@1"]
    apart = bootstrap_ci(ranks, np.arange(1000))["R@1"]
    assert together == [0.0, 100.0]
    assert apart[1] - apart[0] == pytest.approx(2 * 1.96 * 100 * math.sqrt(0.25 / 1000), rel=0.1)


def test_bootstrap_depends_on_its_seed_only():
    generator = np.random.default_rng(5)
    ranks, clusters = generator.integers(1, 30, 300), generator.integers(0, 60, 300)
    assert bootstrap_ci(ranks, clusters, seed=1) == bootstrap_ci(ranks, clusters, seed=1)
    assert bootstrap_ci(ranks, clusters, seed=1) != bootstrap_ci(ranks, clusters, seed=2)
    # the names of clusters do not matter
    assert bootstrap_ci(ranks, clusters * 7 + 3, seed=1) == bootstrap_ci(ranks, clusters, seed=1)


def test_evaluate_has_the_documented_keys():
    queries, gallery = scored([[0.9, 0.1], [0.9, 0.1]])
    result = evaluate(queries, gallery, [0, 1], [0, 1], clusters=[0, 1])
    assert list(result) == ["R@1", "R@5", "R@10", "MRR", "n_queries", "n_gallery", "ci95"]
    assert (result["R@1"], result["MRR"], result["n_queries"], result["n_gallery"]) == (50.0, 75.0, 2, 2)
    assert result["ci95"]["R@1"] == [0.0, 100.0]
    fast = evaluate(queries, gallery, [0, 1], [0, 1], clusters=[0, 1], n_bootstrap=0)
    assert fast == {key: value for key, value in result.items() if key != "ci95"}
    with pytest.raises(ValueError, match="at least 1"):
        bootstrap_ci([1], [0], n=0)


def small_corpus():
    """Two images on two axes, three utterances (the last two of image 1) and their texts."""
    speech = np.array([[2.0, 0.0], [0.6, 0.8], [0.8, 0.6]])  # the third is nearer to image 0, the wrong one
    images = np.array([[1.0, 0.0], [0.0, 3.0]])
    texts = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    return speech, np.array([0, 1, 1]), images, texts


def test_report_by_hand():
    speech, owner, images, texts = small_corpus()
    report = retrieval_report(speech, owner, images, texts)
    assert list(report) == [
        "speech->image",
        "image->speech",
        "speech->text",
        "text->speech",
        "speech->text (any caption)",
        "text->speech (any caption)",
        "text->image",
        "random",
        "mean_R@10",
    ]
    # utterances 0 and 1 find their image, 2 does not. Both images find one of their utterances
    assert report["speech->image"]["R@1"] == pytest.approx(100 * 2 / 3)
    assert report["image->speech"]["R@1"] == 100.0
    assert (report["image->speech"]["n_queries"], report["image->speech"]["n_gallery"]) == (2, 3)
    # utterance 1 equals text 2: not its own caption, but one of its image. Utterance 2 finds its own
    assert report["speech->text"]["R@1"] == pytest.approx(100 * 2 / 3)
    assert report["speech->text (any caption)"]["R@1"] == 100.0
    # texts 0, 1 and 2 are nearest to utterances 0, 1 and 1
    assert report["text->speech"]["R@1"] == pytest.approx(100 * 2 / 3)
    assert report["text->speech (any caption)"]["R@1"] == 100.0
    assert report["text->image"]["R@1"] == 100.0
    assert list(report["random"]) == list(report)[:7]
    assert report["random"]["speech->image"]["R@1"] == 50.0
    assert report["random"]["image->speech"]["R@1"] == pytest.approx(100 * (1 / 3 + 2 / 3) / 2)
    assert report["random"]["speech->text"]["R@1"] == pytest.approx(100 / 3)
    assert report["random"]["speech->text (any caption)"]["R@1"] == pytest.approx(100 * (1 + 2 + 2) / 9)
    assert report["mean_R@10"] == 100.0
    assert json.loads(json.dumps(report)) == report


def test_report_has_the_possible_directions_only():
    speech, owner, images, texts = small_corpus()
    pictures = retrieval_report(speech, owner, images)
    assert set(pictures) == {"speech->image", "image->speech", "random", "mean_R@10"}
    captions = retrieval_report(speech, owner, None, texts)
    assert "mean_R@10" not in captions and "text->image" not in captions and "speech->text" in captions


@pytest.mark.parametrize("other", ["a dog", "A dog", " a  DOG\t"])
def test_an_equal_caption_counts_as_own(other):
    speech, owner, images, texts = small_corpus()
    texts[1] = texts[0]
    strings = ["a dog", other, "a cat"]  # the same tokens
    owner = np.array([0, 1, 1])
    alone = retrieval_report(speech, owner, images, texts)
    known = retrieval_report(speech, owner, images, texts, captions=strings)
    # utterance 0 ties with text 1, which must count as its own in both protocols
    assert alone["speech->text"]["R@1"] < known["speech->text"]["R@1"]
    assert alone["speech->text (any caption)"]["R@1"] < known["speech->text (any caption)"]["R@1"]
    assert known["random"]["speech->text"]["R@1"] == pytest.approx(100 * (2 + 2 + 1) / 9)


def test_text_directions_use_utterances_with_text():
    speech, owner, images, texts = small_corpus()
    report = retrieval_report(speech, owner, images, texts[[2, 0]], text_utterances=[2, 0])
    assert report["speech->image"]["n_queries"] == 3
    assert (report["speech->text"]["n_queries"], report["speech->text"]["n_gallery"]) == (2, 2)
    assert report["speech->text"]["R@1"] == 100.0
    assert report["text->image"]["n_gallery"] == 2


def test_images_without_utterance_are_not_queries():
    speech, owner, images, _ = small_corpus()
    report = retrieval_report(speech, owner, np.concatenate([images, [[0.8, 0.6]]]))
    assert report["speech->image"]["n_gallery"] == 3
    assert report["image->speech"]["n_queries"] == 2


def test_report_refuses_arrays_that_do_not_fit():
    speech, owner, images, texts = small_corpus()
    with pytest.raises(ValueError, match="utt_images"):
        retrieval_report(speech, owner[:2], images)
    with pytest.raises(ValueError, match="outside the 2 images"):
        retrieval_report(speech, owner + 1, images)
    with pytest.raises(ValueError, match="do not fit"):
        retrieval_report(speech, owner, images, texts[:2])
    with pytest.raises(ValueError, match="do not fit"):
        retrieval_report(speech, owner, images, texts, captions=["a"])


def test_memory_does_not_grow_with_pairs() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((60_000, 8)).astype(np.float32)
    owner = np.repeat(np.arange(3_000), 20)
    queries = rng.standard_normal((3_000, 8)).astype(np.float32)
    queries[7] = queries[9]
    tracemalloc.start()
    ranks = first_hit_ranks(queries, gallery, np.arange(3_000), owner)
    table = chance(np.arange(3_000), owner)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(ranks) == 3_000 and table["R@1"] == pytest.approx(100 * 20 / 60_000)
    assert peak < 350e6  # the whole matrix needs 720 MB in single precision, and its comparisons the same


def test_equal_hashes_are_checked_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.array([[1.0, 0.0], [2.0, 3.0], [1.0, -0.0], [2.0, 3.5]], dtype=np.float32)
    from speechclip.eval import ranking

    first, inverse = ranking._distinct_rows(matrix)
    assert matrix[first][inverse].tolist() == (matrix + 0).tolist() and len(first) == 3 and inverse[0] == inverse[2]
    monkeypatch.setattr(ranking, "_row_hashes", lambda rows: np.zeros(len(rows), dtype=np.uint64))
    first, inverse = ranking._distinct_rows(matrix)
    assert len(first) == 3 and inverse[0] == inverse[2]


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_relevant_items_are_counted(columns: int) -> None:
    from speechclip.eval import retrieval

    rng = np.random.default_rng(columns)
    q, g = rng.integers(0, 6, (40, columns)), rng.integers(0, 6, (70, columns))
    expected = (q[:, None, :] == g[None, :, :]).any(axis=2).sum(axis=1)
    assert retrieval._count_relevant(q, g).tolist() == expected.tolist()


def test_branches_are_scored_one_by_one() -> None:
    images, owner = np.eye(2), [0, 1]
    branches = {"parallel": np.eye(2, dtype=np.float32), "cascaded": np.eye(2, dtype=np.float32)[::-1]}
    report, ranks = branch_report(branches, owner, images, n_bootstrap=0)
    assert report["speech->image"]["R@1"] == 100.0 and report["branch"] == "parallel"
    assert ranks["speech->image"][0].tolist() == [1, 1]
    assert list(report["branches"]) == ["cascaded"]
    assert report["branches"]["cascaded"]["speech->image"]["R@1"] == 0.0
    assert list(report["branches"]["cascaded"]) == ["speech->image", "image->speech", "mean_R@10"]
    single, _ = branch_report({"parallel": branches["parallel"]}, owner, images, n_bootstrap=0)
    assert "branches" not in single and single["mean_R@10"] == 100.0


def test_retrieval_report_of_mapped_arrays_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    images = rng.standard_normal((40, 16)).astype(np.float32)
    images[7] = images[3]  # equal rows are gathered once
    owner = rng.integers(0, 40, 300)
    speech, texts = (images[owner] + rng.standard_normal((300, 16)).astype(np.float32) for _ in range(2))
    plain = retrieval_report(speech, owner, images, texts, n_bootstrap=50)
    monkeypatch.setattr(mapped, "MAP_BYTES", 1)
    assert isinstance(mapped.new_array((40, 16), np.float32).base, np.memmap)
    assert retrieval_report(speech, owner, images, texts, n_bootstrap=50) == plain
