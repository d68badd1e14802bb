"""The second stage of retrieval in a report: rows after reranking, the paired test, K and the cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from speechclip.eval.coarse_to_fine import REORDERED, ScorePairs, two_stage_report
from speechclip.eval.ranking import Floats, Ints

SECTION = "coarse_to_fine"  # in retrieval.json

Ranks = dict[str, tuple[Ints, Ints]]


class Counted:
    """A scorer of pairs that counts the pairs and the seconds."""

    def __init__(self, score_pairs: ScorePairs) -> None:
        self._score_pairs = score_pairs
        self.pairs, self.seconds = 0, 0.0

    def __call__(self, pairs: Ints) -> Floats:
        started = time.perf_counter()
        scores = self._score_pairs(pairs)
        self.seconds += time.perf_counter() - started
        self.pairs += len(pairs)
        return scores

    def cost(self, section: dict[str, Any], coarse_seconds: float) -> dict[str, float]:
        """Return the cost of the second stage for the scores of both directions."""
        queries = sum(section[direction]["n_queries"] for direction in ("speech->image", "image->speech"))
        return {
            "pairs": self.pairs,
            "pairs_per_query": self.pairs / queries,
            "pairs_per_second": self.pairs / max(self.seconds, 1e-9),
            "seconds_over_coarse": self.seconds / max(coarse_seconds, 1e-9),
        }


def add_second_stage(
    report: dict[str, Any], ranks: Ranks, coarse: Callable[[], Floats], utt_images: Ints, top_k: int,
    score_pairs: ScorePairs, *, name: str, n_bootstrap: int = 1000,
) -> None:  # fmt: skip
    """Add the scores after reranking to a report and its ranks.

    ``report["coarse_to_fine"]`` gets, by direction, the scores after the best K are ordered by ``score_pairs`` alone.
    It also gets their means over both directions, the "paired" test against the coarse order, "top_k" (K), "name", and
    "cost": the number of pairs, pairs per second, pairs per query, and the seconds of the second stage divided by those
    of the coarse scores.

    Args:
        report: of :func:`speechclip.eval.retrieval.branch_report`; it is changed.
        ranks: by direction, the ranks and images of the queries; it is changed.
        coarse: returns the coarse scores of all utterances and images, [U, I].
        utt_images: image of each utterance, [U].
        top_k: K.
        score_pairs: returns the scores of pairs of an utterance and an image. Those of fast_vgs are fine scores. Those
            of a reranker are the coarse score plus the weighted fine score.
        name: name of the row in tables.
        n_bootstrap: number of resamples; 0 for no intervals and no test.
    """
    started = time.perf_counter()
    scores = coarse()
    coarse_seconds = time.perf_counter() - started
    counted = Counted(score_pairs)
    both, found = two_stage_report(scores, np.asarray(utt_images), top_k, counted, n_bootstrap)
    section = both[SECTION]
    section["name"] = name
    section["cost"] = counted.cost(section, coarse_seconds)
    report[SECTION] = section
    ranks.update({direction: value for direction, value in found.items() if direction.endswith(REORDERED)})
