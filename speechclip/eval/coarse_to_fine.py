"""Coarse-to-fine retrieval: the K best by a cheap score are ordered by an expensive one (Peng and Harwath 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from speechclip.eval.ranking import Floats, Ints, ranks_from_scores, relevant_pairs, sort_groups
from speechclip.eval.retrieval import bootstrap_ci, chance, recall_table
from speechclip.eval.significance import paired_scores, paired_test

REORDERED = " (coarse to fine)"  # behind the name of a direction

#: Scores pairs [P, 2] of a query and a gallery item: [P].
ScorePairs = Callable[[Ints], Floats]


class TwoStageRanks(NamedTuple):
    """Ranks of both stages, from 1, [Q] each."""

    coarse: Ints
    fine: Ints


def coarse_to_fine_ranks(
    coarse: Floats, query_groups: Ints, gallery_groups: Ints, top_k: int, score_pairs: ScorePairs
) -> TwoStageRanks:
    """Rank the gallery for each query by the coarse score, and the best K again by ``score_pairs`` alone.

    A query without a relevant item among its K best keeps its coarse rank, which is greater than K. Ties count against
    the system, as in :func:`speechclip.eval.ranking.first_hit_ranks`.

    Args:
        coarse: [Q, G].
        query_groups: [Q], the image of each query.
        gallery_groups: [G], the image of each item. An item of the query's image is relevant.
        top_k: K.
        score_pairs: returns the fine scores of pairs.
    """
    queries, gallery = np.asarray(query_groups, dtype=np.int64), np.asarray(gallery_groups, dtype=np.int64)
    pairs = relevant_pairs(queries[:, None], *sort_groups(gallery[:, None]))
    ranks = ranks_from_scores(coarse, *pairs)
    count = min(top_k, coarse.shape[1])
    # a stable order: ties of the coarse score do not depend on the machine
    best = np.argsort(-coarse, axis=1, kind="stable")[:, :count]  # [Q, K]
    rows = np.repeat(np.arange(len(best)), count)
    fine = np.asarray(score_pairs(np.stack([rows, best.reshape(-1)], axis=1))).reshape(best.shape)
    relevant = gallery[best] == queries[:, None]
    top = np.where(relevant, fine, -np.inf).max(axis=1)  # [Q]
    placed = 1 + ((fine >= top[:, None]) & ~relevant).sum(axis=1)
    return TwoStageRanks(ranks, np.where(relevant.any(axis=1), placed, np.maximum(ranks, count + 1)))


def two_stage_report(
    coarse: Floats, utt_images: Ints, top_k: int, score_pairs: ScorePairs, n_bootstrap: int = 1000, seed: int = 0,
    tests: int = 10000,
) -> tuple[dict[str, Any], dict[str, tuple[Ints, Ints]]]:  # fmt: skip
    """Score both directions between speech and images with the coarse scores, and with the best K in a new order.

    Args:
        coarse: [U, I], of every utterance and image.
        utt_images: the column of each utterance's image, [U].
        top_k: K, the number of candidates in each direction.
        score_pairs: returns the fine scores of pairs of an utterance and an image.
        n_bootstrap: number of resamples of the intervals; 0 for no intervals and no paired test.
        seed: seed of the resamples and of the test.
        tests: random exchanges of the paired test.

    Returns:
        A report as of :func:`speechclip.eval.retrieval.retrieval_report` with the coarse scores. "coarse_to_fine" has
            the same directions after the second stage, "mean_R@1", "top_k", and by direction "paired", the test between
            the stages.
        By direction, the rank and the image of every query. The second stage has the directions with
            :data:`REORDERED` behind their names.
    """
    owner, images = np.asarray(utt_images, dtype=np.int64), np.arange(coarse.shape[1])
    used = np.unique(owner)

    def transposed(pairs: Ints) -> Floats:
        return score_pairs(np.stack([pairs[:, 1], used[pairs[:, 0]]], axis=1))

    cases = {
        "speech->image": (coarse, owner, images, score_pairs),
        "image->speech": (np.ascontiguousarray(coarse.T[used]), used, owner, transposed),
    }
    report: dict[str, Any] = {}
    second: dict[str, Any] = {"top_k": top_k}
    ranks: dict[str, tuple[Ints, Ints]] = {}
    for name, (scores, queries, gallery, scorer) in cases.items():
        both = coarse_to_fine_ranks(scores, queries, gallery, top_k, scorer)
        report[name] = score_ranks(both.coarse, queries, len(gallery), n_bootstrap, seed)
        second[name] = score_ranks(both.fine, queries, len(gallery), n_bootstrap, seed)
        ranks[name], ranks[name + REORDERED] = (both.coarse, queries), (both.fine, queries)
    report["random"] = {name: chance(case[1], case[2]) for name, case in cases.items()}
    for part in (report, second):
        for key in ("R@1", "R@10"):
            part[f"mean_{key}"] = float(np.mean([part[name][key] for name in cases]))
    if n_bootstrap:
        second["paired"] = stage_tests(ranks, tests, seed)
    report["coarse_to_fine"] = second
    return report, ranks


def stage_tests(ranks: Mapping[str, tuple[Ints, Ints]], tests: int, seed: int) -> dict[str, dict[str, Any]]:
    """Test the second stage against the coarse order.

    Args:
        ranks: by direction, the rank and the image of every query, of both stages; see :func:`two_stage_report`.
        tests: random exchanges.
        seed: of the exchanges and resamples.

    Returns:
        by direction, :func:`speechclip.eval.significance.paired_test`; "mean" has the mean R@1 of the directions.
    """
    names = [name for name in ranks if name + REORDERED in ranks]
    found = {name: paired_test(ranks[name + REORDERED][0], *ranks[name], n=tests, seed=seed) for name in names}
    return {**found, "mean": _test_of_means(ranks, names, tests, seed)}


def _test_of_means(
    ranks: Mapping[str, tuple[Ints, Ints]], names: Sequence[str], tests: int, seed: int
) -> dict[str, Any]:
    """Test the mean of R@1 over both directions. All queries of an image change stages together."""
    sums, clusters = [], np.concatenate([ranks[name][1] for name in names])
    for suffix in (REORDERED, ""):
        parts = [np.zeros((len(ranks[name][0]), 2 * len(names))) for name in names]
        for at, (part, name) in enumerate(zip(parts, names)):
            part[:, 2 * at], part[:, 2 * at + 1] = ranks[name + suffix][0] == 1, 1
        sums.append(np.concatenate(parts))
    scores = paired_scores(
        sums[0], sums[1], clusters, lambda s: 100 * (s[..., ::2] / s[..., 1::2]).mean(axis=-1, keepdims=True),
        ["R@1"], tests, seed,
    )  # fmt: skip
    return scores


def score_ranks(ranks: Ints, clusters: Ints, gallery: int, n_bootstrap: int, seed: int = 0) -> dict[str, Any]:
    """Return the scores of ranks [Q] as :func:`speechclip.eval.retrieval.evaluate` does."""
    scores = {**recall_table(ranks), "n_queries": len(ranks), "n_gallery": gallery}
    return scores | ({"ci95": bootstrap_ci(ranks, clusters, n=n_bootstrap, seed=seed)} if n_bootstrap else {})
