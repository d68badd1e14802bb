"""Retrieval of speech in one language with speech in another language, through the images that both describe.

Harwath, Chuang and Glass 2018 score both directions between two languages on images with a caption in each. A query is
an utterance, the gallery is all utterances of the other language, and an utterance of the same image is relevant.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speechclip.eval.retrieval import chance, evaluate


def cross_lingual_report(
    speech: ArrayLike, languages: Sequence[str], utt_images: ArrayLike, n_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Score every ordered pair of languages.

    The queries of a direction are the utterances of the first language whose image has an utterance in the second one.

    Args:
        speech: embeddings [U, D] of length one.
        languages: of the utterances, U.
        utt_images: the image of each utterance, [U].
        n_bootstrap: number of resamples; 0 for no intervals.
        seed: seed of the resamples.
    Returns:
        by direction, such as "en->hi", the result of :func:`speechclip.eval.retrieval.evaluate`.
        "random": by direction, the chance level.
        "mean": of R@1, R@5, R@10 and MRR over the directions.

    Raises:
        ValueError: the lengths differ, or no image has speech in two languages.
    """
    vectors, tongue, owner = np.asarray(speech), np.asarray(list(languages)), np.asarray(utt_images)
    if not len(vectors) == len(tongue) == len(owner):
        raise ValueError(f"{len(vectors)} embeddings, {len(tongue)} languages and {len(owner)} images do not fit")
    report: dict[str, Any] = {}
    random: dict[str, Any] = {}
    for first, second in permutations(sorted(set(tongue.tolist())), 2):
        gallery = tongue == second
        queries = (tongue == first) & np.isin(owner, owner[gallery])
        if queries.any():
            name, groups = f"{first}->{second}", (owner[queries], owner[gallery])
            report[name] = evaluate(vectors[queries], vectors[gallery], *groups, owner[queries], n_bootstrap, seed)
            random[name] = chance(*groups)
    if not report:
        raise ValueError("no image has speech in two languages")
    keys = ("R@1", "R@5", "R@10", "MRR")
    mean = {key: float(np.mean([row[key] for row in report.values()])) for key in keys}
    return {**report, "random": random, "mean": mean}
