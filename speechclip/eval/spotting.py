"""Keyword spotting: utterances ranked by the score of a keyword.

The scores are those of Kamper et al. 2017 and 2019 (semantic_flickraudio): precision at 10, precision at N, where N is
the number of utterances with the keyword, and equal error rate; and average precision. Each is computed for every
keyword that has an utterance, and averaged over the keywords. "exact" labels say that the caption has the word,
"semantic" labels that people find the word fitting for the caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

NAMES = ("P@10", "P@N", "EER", "AP")


def spotting_report(
    scores: Floats, labels: Bools, keywords: Sequence[str], n_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Score one set of labels.

    Args:
        scores: [U, W], higher for utterances that the keyword fits.
        labels: [U, W], True if it does.
        keywords: W words.
        n_bootstrap: resamples of the keywords for the intervals; 0 for none.
        seed: seed of the resamples.
    Returns:
        "P@10", "P@N", "EER" and "AP" in percent, averaged over the keywords.
        "ci95": their intervals.
        "chance": the expected values for a random order.
        "keywords": by keyword, its scores and "N".
        "n_keywords", "n_utterances".

    Raises:
        ValueError: the shapes do not fit, a score is not finite, or no keyword has both kinds of utterances.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if values.shape != truth.shape or values.shape[1:] != (len(keywords),):
        raise ValueError(f"scores {values.shape}, labels {truth.shape} and {len(keywords)} keywords do not fit")
    if not np.isfinite(values).all():
        raise ValueError("scores are not finite")
    count = truth.sum(axis=0)
    used = [at for at in range(len(keywords)) if 0 < count[at] < len(values)]
    if not used:
        raise ValueError("no keyword has utterances with and without it")
    rows = {keywords[at]: keyword_scores(values[:, at], truth[:, at]) for at in used}
    table = np.array([[row[name] for name in NAMES] for row in rows.values()])
    share = 100.0 * count[used] / len(values)
    report: dict[str, Any] = dict(zip(NAMES, table.mean(axis=0).tolist(), strict=True))
    if n_bootstrap:
        drawn = np.random.default_rng(seed).integers(len(table), size=(n_bootstrap, len(table)))
        limits = np.percentile(table[drawn].mean(axis=1), [2.5, 97.5], axis=0)
        report["ci95"] = {name: limits[:, at].tolist() for at, name in enumerate(NAMES)}
    precision = float(share.mean())
    missing = np.minimum(10, len(values)) / 10  # the published P@10 is divided by 10 in any case
    expected = [_expected_ap(int(count[at]), len(values)) for at in used]
    report["chance"] = {
        "P@10": precision * missing, "P@N": precision, "EER": 50.0, "AP": float(np.mean(expected)),
    }  # fmt: skip
    report["keywords"] = {word: {**row, "N": int(count[at])} for (word, row), at in zip(rows.items(), used)}
    return {**report, "n_keywords": len(used), "n_utterances": len(values)}


def keyword_scores(scores: Floats, labels: Bools) -> dict[str, float]:
    """Return the scores of one keyword in percent.

    Args:
        scores: [U]. Utterances with equal scores keep their order for the precisions.
        labels: [U], with at least one True and one False.
    """
    order = np.argsort(-scores, kind="stable")
    hits = labels[order]
    number = int(hits.sum())
    found = {"P@10": hits[:10].sum() / 10, "P@N": hits[:number].mean()}
    found |= {"EER": equal_error_rate(scores, labels), "AP": average_precision(scores, labels)}
    return {name: 100.0 * float(found[name]) for name in NAMES}


def equal_error_rate(scores: Floats, labels: Bools) -> float:
    """Return the rate at which misses and false alarms are equally frequent, on straight lines between thresholds."""
    true, false = _curve(scores, labels)
    alarms = np.concatenate([[0.0], false / false[-1]])
    misses = 1.0 - np.concatenate([[0.0], true / true[-1]])
    at = int(np.argmax(alarms >= misses))  # at least 1: the curve begins with all missed
    gap, after = misses[at - 1] - alarms[at - 1], misses[at] - alarms[at]
    share = gap / (gap - after)
    return float(alarms[at - 1] + share * (alarms[at] - alarms[at - 1]))


def average_precision(scores: Floats, labels: Bools) -> float:
    """Return the sum of precision times gain of recall over the thresholds, as scikit-learn computes it."""
    true, false = _curve(scores, labels)
    gains = np.diff(np.concatenate([[0.0], true])) / true[-1]
    return float((true / (true + false) * gains).sum())


def spotting_labels(captions: Sequence[str], keywords: Sequence[str], given: Sequence[set[str]] | None = None) -> Bools:
    """Return labels [U, W]: whether the caption has the keyword, or whether it is in the given sets.

    Args:
        captions: U captions. Case and punctuation do not matter.
        keywords: W words.
        given: sets of keywords, U; None: the words of the captions.
    """
    sets = given if given is not None else [words_of(caption) for caption in captions]
    return np.array([[word in found for word in keywords] for found in sets], dtype=bool)


def words_of(caption: str) -> set[str]:
    """Return the words of a caption in lower case, without punctuation around them."""
    return {word.strip(".,;:!?\"'()[]-").lower() for word in caption.split()} - {""}


def attention_scores(vectors: Floats, mask: Bools, subwords: Mapping[str, Floats]) -> tuple[Floats, NDArray[np.int64]]:
    """Return the score of each keyword in each utterance, from the vectors that a head found by attention.

    The score is the largest cosine between a vector and the mean embedding of the keyword's subwords.

    Args:
        vectors: [U, K, D].
        mask: [U, K], True for the vectors that exist.
        subwords: by keyword, the embeddings of its subwords, [S, D].
    Returns:
        scores [U, W]; -1 for an utterance without vectors.
        the vector with this score, [U, W].
    """
    queries = np.stack([_unit(_unit(rows).mean(axis=0)) for rows in subwords.values()])  # [W, D]
    cosines = np.where(mask[:, :, None], _unit(vectors) @ queries.T, -1.0)  # [U, K, W]
    return cosines.max(axis=1), cosines.argmax(axis=1)


def _unit(values: Floats) -> Floats:
    norm = np.linalg.norm(values, axis=-1, keepdims=True)
    unit: Floats = values / np.where(norm > 0, norm, 1)
    return unit


def _curve(scores: Floats, labels: Bools) -> tuple[Floats, Floats]:
    """Return the numbers of true and false utterances at each threshold, from high to low; equal scores together."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true = np.cumsum(labels[order])[ends].astype(np.float64)
    return true, (ends + 1) - true


def _expected_ap(number: int, total: int) -> float:
    """Return the expected average precision of a random order, in percent.

    A true utterance is at rank r with equal probability. Before it are (r - 1)(number - 1) / (total - 1) others.
    """
    ranks = np.arange(1, total + 1)
    others = (ranks - 1) * (number - 1) / max(1, total - 1)
    return 100.0 * float(((1 + others) / ranks).mean())
