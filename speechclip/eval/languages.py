"""Retrieval scores of each language, and between the speech of two languages through the image that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speechclip.eval.retrieval import chance, evaluate, retrieval_report

#: Keys of retrieval.json.
LANGUAGES, ACROSS = "languages", "across_languages"


def language_report(
    speech: ArrayLike,
    utt_images: ArrayLike,
    images: ArrayLike | None,
    languages: Sequence[str],
    texts: ArrayLike | None = None,
    captions: Sequence[str] | None = None,
    text_utterances: ArrayLike | None = None,
    n_bootstrap: int = 1000,
) -> dict[str, Any]:
    """Score each language, and speech in one language against speech in another one.

    A language has the utterances and captions of this language, and all images. Across languages, an utterance is
    relevant if it describes the same image. Queries whose image has no utterance in the other language are left out.

    Args:
        speech: embeddings [U, D], L2-normalised.
        languages: the language of each utterance, U.
        n_bootstrap: number of resamples of the images; 0 for no intervals.
        utt_images, images, texts, captions, text_utterances: see
            :func:`~speechclip.eval.retrieval.retrieval_report`.

    Returns:
        Nothing if there are fewer than two languages. Otherwise:
        "languages": by language, the result of :func:`~speechclip.eval.retrieval.retrieval_report`.
        "across_languages": by "QUERY->GALLERY", the result of :func:`~speechclip.eval.retrieval.evaluate`, and its
            chance level as "random". A pair of languages without a common image is left out.
    """
    rows, owner, spoken = np.asarray(speech), np.asarray(utt_images, dtype=np.int64), np.asarray(list(languages))
    if spoken.shape != owner.shape:
        raise ValueError(f"{len(spoken)} languages do not fit {len(owner)} utterances")
    names = sorted(set(spoken.tolist()))
    if len(names) < 2:
        return {}
    text_rows = None if texts is None else np.asarray(texts)
    of_text = np.arange(len(rows)) if text_utterances is None else np.asarray(text_utterances, dtype=np.int64)
    each: dict[str, Any] = {}
    for name in names:
        mine = np.flatnonzero(spoken == name)
        kept = np.flatnonzero(np.isin(of_text, mine)) if text_rows is not None else np.empty(0, np.int64)
        written: dict[str, Any] = {}
        if text_rows is not None and len(kept):
            written = {"texts": text_rows[kept], "text_utterances": np.searchsorted(mine, of_text[kept])}
            if captions is not None:
                written["captions"] = [captions[int(at)] for at in kept]
        each[name] = retrieval_report(rows[mine], owner[mine], images, **written, n_bootstrap=n_bootstrap)
    pairs = [(first, second) for first in names for second in names if first != second]
    found = {
        f"{first}->{second}": _across(rows, owner, spoken == first, spoken == second, n_bootstrap)
        for first, second in pairs
    }
    return {LANGUAGES: each, ACROSS: {name: scores for name, scores in found.items() if scores}}


def _across(
    rows: np.ndarray, owner: np.ndarray, queries: np.ndarray, gallery: np.ndarray, n_bootstrap: int
) -> dict[str, Any]:
    """Score utterances of one mask against those of another one. Return nothing if they have no common image."""
    asked = queries & np.isin(owner, owner[gallery])
    if not asked.any():
        return {}
    scores = evaluate(rows[asked], rows[gallery], owner[asked], owner[gallery], owner[asked], n_bootstrap)
    return {**scores, "random": chance(owner[asked], owner[gallery])}
