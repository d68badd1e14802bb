"""Coarse-to-fine retrieval with a plain scorer: ranks by hand, K per direction, the paired test and the cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from speechclip.eval.coarse_to_fine import REORDERED, coarse_to_fine_ranks
from speechclip.eval.retrieval import branch_report
from speechclip.eval.second_stage import SECTION, add_second_stage

# Four images, two utterances of each; coarse scores that place each image second behind its neighbour.
OWNER = np.array([0, 0, 1, 1, 2, 2, 3, 3])
COARSE = np.array(
    [
        [1, 2, 0.5, 0.1], [2, 1, 0.5, 0.1], [0.1, 1, 2, 0.5], [0.1, 2, 1, 0.5],
        [0.5, 0.1, 1, 2], [0.5, 0.1, 2, 1], [2, 0.1, 0.5, 1], [0.1, 0.2, 0.3, 1],
    ],
    dtype=np.float32,
)  # fmt: skip


class Scorer:
    """Fine scores from a table; it keeps the pairs that it was asked for."""

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.asked = table, np.empty((0, 2), dtype=int)

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        self.asked = np.concatenate([self.asked, pairs])
        return self.table[pairs[:, 0], pairs[:, 1]]


PERFECT = (OWNER[:, None] == np.arange(4)).astype(np.float32)


@pytest.mark.parametrize(
    ("top_k", "fine", "expected"),
    [
        (1, PERFECT, [2, 1, 2, 1, 2, 1, 2, 1]),  # a right image outside of the best K keeps its coarse rank
        (2, PERFECT, [1] * 8),
        (9, PERFECT, [1] * 8),  # K is at most the gallery
        (2, -PERFECT, [2] * 8),  # the coarse score does not count among the best K
        (3, -PERFECT, [3] * 8),
        (4, 0 * PERFECT, [4] * 8),  # ties count against the system
    ],
)
def test_the_best_candidates_are_ordered_by_the_fine_score(top_k: int, fine: np.ndarray, expected: list[int]) -> None:
    scorer = Scorer(fine)
    ranks = coarse_to_fine_ranks(COARSE, OWNER, np.arange(4), top_k, scorer)
    assert ranks.coarse.tolist() == [2, 1, 2, 1, 2, 1, 2, 1]
    assert ranks.fine.tolist() == expected
    assert len(scorer.asked) == 8 * min(top_k, 4)


def _report(fine: np.ndarray, top_k: int, n_bootstrap: int = 200) -> tuple[dict[str, Any], dict[str, Any], Scorer]:
    # embeddings whose cosines have the order of COARSE
    images, speech = np.eye(4, dtype=np.float32), COARSE / np.linalg.norm(COARSE, axis=1, keepdims=True)
    report, ranks = branch_report({"parallel": speech}, OWNER, images, n_bootstrap=n_bootstrap)
    scorer = Scorer(fine)
    add_second_stage(
        report, ranks, lambda: speech @ images.T, OWNER, top_k, scorer, name="plain", n_bootstrap=n_bootstrap
    )  # fmt: skip
    return report, ranks, scorer


def test_second_stage_has_rows_test_and_cost() -> None:
    report, ranks, scorer = _report(PERFECT, 2)
    section = report[SECTION]
    assert report["speech->image"]["R@1"] == 50  # the coarse row stays
    assert section["speech->image"]["R@1"] == 100
    assert section["speech->image"]["ci95"]["R@1"] == [100, 100]
    assert (section["top_k"], section["name"]) == (2, "plain")
    # 8 utterances with 2 images each, and 4 images with 2 utterances each
    assert len(scorer.asked) == section["cost"]["pairs"] == 8 * 2 + 4 * 2
    assert section["cost"]["pairs_per_query"] == pytest.approx(24 / 12)
    assert section["cost"]["pairs_per_second"] > 0
    assert section["cost"]["seconds_over_coarse"] > 0
    test = section["paired"]["speech->image"]["R@1"]
    assert (test["first"], test["second"], test["difference"]) == (100, 50, 50)
    # four images: one of eight exchanges of all signs reaches the difference on each side
    assert test["p"] == pytest.approx(2 / 16, abs=0.02)
    assert section["mean_R@1"] == (100 + section["image->speech"]["R@1"]) / 2
    assert ranks[f"speech->image{REORDERED}"][0].tolist() == [1] * 8
    assert ranks["speech->image"][0].tolist() == [2, 1, 2, 1, 2, 1, 2, 1]


def test_any_utterance_of_the_image_is_a_hit() -> None:
    fine = np.zeros((8, 4), dtype=np.float32)
    fine[1, 0] = fine[3, 1] = fine[5, 2] = fine[7, 3] = 1  # only the second utterance of each image scores
    report, _, _ = _report(fine, 8)
    assert report[SECTION]["image->speech"]["R@1"] == 100
    assert report[SECTION]["speech->image"]["R@1"] == 50


def test_without_resamples_there_is_no_test() -> None:
    report, _, _ = _report(PERFECT, 2, n_bootstrap=0)
    assert "paired" not in report[SECTION]
    assert "ci95" not in report[SECTION]["speech->image"]
