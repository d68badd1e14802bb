"""What every utterance adds to the keyword scores, ``keywords.npz`` of stage 5, by which two runs are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.common.files import replacing
from speechclip.data.embeddings import read_arrays
from speechclip.eval.case import ALL, CONTENT, KeywordEvalData
from speechclip.eval.gold import Word
from speechclip.eval.keywords import named
from speechclip.eval.significance import paired_scores
from speechclip.eval.words import MEASURES, word_counts, word_measures

Floats = NDArray[np.floating[Any]]

COSINE, WORDS = "gold_cosine", "words"


def contributions(case: KeywordEvalData, captions: Sequence[Sequence[Word]]) -> dict[str, Floats]:
    """By the name of a score: what each utterance adds to it.

    "clean", "reference", "content_top1", "gold_cosine all" and "gold_cosine content": [U, 2], hits or cosines of its
    keywords, and how many of them are counted; "words all" and "words content": [U, 4], see `words.word_counts`.
    """
    found: dict[str, Floats] = {}
    owner = case.places.owner
    for name, (ids, gold, _) in named(case).items():
        found[name] = _summed(case, gold.intersects(owner, ids), gold.size[owner] > 0)
    for kind in (ALL, CONTENT):
        cosine = case.best[kind][1]
        found[f"{COSINE} {kind}"] = _summed(case, np.nan_to_num(cosine), ~np.isnan(cosine))
        found[f"{WORDS} {kind}"] = word_counts(case, kind, captions)
    return found


def _summed(case: KeywordEvalData, values: NDArray[Any], counted: NDArray[np.bool_]) -> Floats:
    """[U, 2]: sums of the counted values [N], and how many they are."""
    columns = [np.where(counted, values, 0.0), counted]
    return np.stack([np.bincount(case.places.owner, column, case.places.shape[0]) for column in columns], axis=1)


def save_contributions(path: Path, ids: Sequence[str], images: Sequence[str], found: Mapping[str, Floats]) -> None:
    """Write them with the utterances' ids [U] and the name of each one's image [U]."""
    arrays: dict[str, NDArray[Any]] = {"ids": np.array(list(ids)), "images": np.array(list(images)), **found}
    with replacing(path) as part:
        np.savez(part, allow_pickle=False, **arrays)  # small whole numbers: packed they would look like a trap


def compare_keywords(first: Path, second: Path, n: int = 10000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """`significance.paired_scores` of every score of two such files, over the utterances that are in both.

    By name, of words with the measure behind it: "words content f1". Percent, but cosines as they are. Empty where a
    file is missing, as of a head without keywords, or the two have no utterance in common.

    Raises:
        UserError: a file that is damaged.
    """
    if not (first.exists() and second.exists()):
        return {}
    one, other = _read(first), _read(second)
    _, mine, theirs = np.intersect1d(one["ids"], other["ids"], return_indices=True)
    found: dict[str, dict[str, Any]] = {}
    for name in one if len(mine) else ():
        if name in ("ids", "images") or name not in other:
            continue
        words = name.startswith(WORDS)
        measure = word_measures if words else _mean(1.0 if name.startswith(COSINE) else 100.0)
        names = [f"{name} {key}" for key in MEASURES] if words else [name]
        found |= paired_scores(one[name][mine], other[name][theirs], one["images"][mine], measure, names, n, seed)
    return found


def _mean(scale: float) -> Callable[[Floats], Floats]:
    """Sums [..., 2] of values and of their numbers to [..., 1], times scale; of nothing 0."""
    return lambda sums: scale * sums[..., :1] / np.maximum(sums[..., 1:], 1)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    content = read_arrays(path)
    if not {"ids", "images"} <= content.keys() or any(len(rows) != len(content["ids"]) for rows in content.values()):
        raise UserError(f"{path}: not what stage 5 writes")
    return content
