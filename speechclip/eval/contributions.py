"""The contribution of every utterance to the keyword scores, for paired tests of two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.gold import Word
from speechclip.eval.keyword_data import ALL, CONTENT, KeywordEvalData
from speechclip.eval.keywords import named_scores
from speechclip.eval.significance import paired_scores
from speechclip.eval.words import MEASURES, word_counts, word_measures

Floats = NDArray[np.floating[Any]]

COSINE, WORDS = "gold_cosine", "words"


def contributions(data: KeywordEvalData, captions: Sequence[Sequence[Word]]) -> dict[str, Floats]:
    """Return what each of U utterances adds to each score.

    Returns:
        "clean", "reference", "content_top1", "gold_cosine all" and "gold_cosine content": [U, 2], the sum of the hits
            or cosines of its keywords, and the number of keywords that count.
        "words all" and "words content": [U, 4], see :func:`speechclip.eval.words.word_counts`.
    """
    found: dict[str, Floats] = {}
    owner = data.index.owner
    for name, (ids, gold, _) in named_scores(data).items():
        found[name] = _sum_by_utterance(data, gold.intersects(owner, ids), gold.size[owner] > 0)
    for kind in (ALL, CONTENT):
        cosine = data.best[kind][1]
        found[f"{COSINE} {kind}"] = _sum_by_utterance(data, np.nan_to_num(cosine), ~np.isnan(cosine))
        found[f"{WORDS} {kind}"] = word_counts(data, kind, captions)
    return found


def paired_keyword_tests(
    first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]], n: int = 10000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Compare two runs on every keyword score that both have, over the utterances that both have.

    Args:
        first: "ids" [U], "images" [U] and the arrays of :func:`contributions`.
        second: the same of the other run.
        n: random exchanges of images between the runs.
        seed: seed of the exchanges and resamples.
    Returns:
        by score, the result of :func:`speechclip.eval.significance.paired_scores`. Scores of words are named with their
        measure: "words content f1". Cosines are not scaled, all others are in percent. Without a common utterance the
        result is empty.
    """
    _, mine, theirs = np.intersect1d(first["ids"], second["ids"], return_indices=True)
    tests: dict[str, dict[str, Any]] = {}
    for name in first if len(mine) else ():
        if name in ("ids", "images") or name not in second:
            continue
        words = name.startswith(WORDS)
        measure = word_measures if words else _mean(1.0 if name.startswith(COSINE) else 100.0)
        names = [f"{name} {key}" for key in MEASURES] if words else [name]
        rows = first[name][mine], second[name][theirs]
        tests |= paired_scores(*rows, first["images"][mine], measure, names, n, seed)
    return tests


def _sum_by_utterance(data: KeywordEvalData, values: NDArray[Any], counted: NDArray[np.bool_]) -> Floats:
    """Return [U, 2]: the sum of the counted values [N] of each utterance, and their number."""
    columns = [np.where(counted, values, 0.0), counted]
    return np.stack([np.bincount(data.index.owner, column, data.index.shape[0]) for column in columns], axis=1)


def _mean(scale: float) -> Callable[[Floats], Floats]:
    """Return a function from sums [..., 2] of values and numbers to means [..., 1], times scale; 0 without values."""
    return lambda sums: scale * sums[..., :1] / np.maximum(sums[..., 1:], 1)
