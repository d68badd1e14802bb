"""Keyword discovery: which subwords of the text encoder the keywords of a head come to lie next to.

A keyword is the vector z_k before quantisation. Scores are in percent of the utterances that have a k-th keyword and a
gold set that is not empty; "avg" is the mean over the keywords.

clean         one of the 5 subwords nearest to z_k, special tokens excluded, is a subword of the caption
reference     as the published code counts: one of the 5 nearest rows, special ones included, of the QUANTISED keyword
              (the row nearest to z_k) is in the padded token sequence, start, end and padding included
content_top1  the nearest content subword is a content subword of the caption: stop words count on neither side
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.heads.spans import attention_span

NEIGHBOURS = 5
BLOCK_SCORES = 1 << 24  # cosines held at a time: 64 MiB in single precision

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Subwords:
    """The (reduced) subword table: embeddings [V, D], the token id of every row [V], and the ids that are not content.

    special_ids are padding, start and end of text; stop_ids what `stopwords.stop_word_ids` names.
    """

    embeddings: Floats
    ids: Ints
    special_ids: frozenset[int]
    stop_ids: frozenset[int]

    def rows(self, ids: Iterable[int]) -> Bools:
        """Mask [V] of the rows whose id is among ids."""
        return np.isin(self.ids, np.fromiter(ids, dtype=np.int64))

    @property
    def special(self) -> Bools:
        """Mask [V] of the special rows."""
        return self.rows(self.special_ids)

    @property
    def no_content(self) -> Bools:
        """Mask [V] of the special rows and the stop words."""
        return self.rows(self.special_ids | self.stop_ids)


def nearest(z: ArrayLike, table: ArrayLike, k: int, exclude: Bools | None = None) -> tuple[Ints, Floats]:
    """The k rows of table [V, D] with the highest cosine to each vector of z [..., D], best first, and the cosines.

    Returns two arrays [..., k]. Rows where exclude [V] is true are never returned; of equal rows the first wins. A
    matrix product per block of vectors. Raises ValueError for values that are not finite and for fewer than k rows.
    """
    vectors, rows = _finite(z, "z"), _finite(table, "table")
    allowed = np.ones(len(rows), dtype=bool) if exclude is None else ~exclude
    candidates = np.flatnonzero(allowed)
    if k > len(candidates):
        raise ValueError(f"{k} neighbours asked for, {len(candidates)} subwords are left")
    flat, target = _unit(vectors.reshape(-1, vectors.shape[-1])), _unit(rows[candidates]).T  # [N, D], [D, C]
    index = np.empty((len(flat), k), dtype=np.int64)
    cosine = np.empty((len(flat), k), dtype=np.result_type(flat, target))
    step = max(1, BLOCK_SCORES // len(candidates))
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        scores = flat[part] @ target  # [b, C]
        here = np.arange(len(scores))
        for place in range(k):
            best = scores.argmax(axis=1)
            index[part, place], cosine[part, place] = candidates[best], scores[here, best]
            scores[here, best] = -np.inf
    shape = (*vectors.shape[:-1], k)
    return index.reshape(shape), cosine.reshape(shape)


def hit_rates(neighbour_ids: ArrayLike, mask: ArrayLike, gold: Sequence[Collection[int]]) -> dict[str, float]:
    """``{"kw1": ..., "kw2": ..., "avg": ...}`` in percent.

    neighbour_ids [U, K, k] token ids; mask [U, K], true where the utterance has that keyword; gold, a set of token ids
    per utterance. A keyword is hit when one of its neighbours is in the gold set. Utterances with an empty gold set are
    not counted, and a keyword that no counted utterance has is left out. Raises ValueError when nothing is left.
    """
    found, present = np.asarray(neighbour_ids, dtype=np.int64), np.asarray(mask, dtype=bool)
    if found.ndim != 3 or found.shape[:2] != present.shape or len(gold) != len(present):
        raise ValueError(f"neighbours {found.shape}, mask {present.shape} and {len(gold)} gold sets do not fit")
    size = np.array([len(set(ids)) for ids in gold], dtype=np.int64)
    wanted = np.fromiter((i for ids in gold for i in sorted(set(ids))), dtype=np.int64, count=int(size.sum()))
    # utterance and id in one number, so that one membership test serves all
    base = 1 + max(int(found.max(initial=0)), int(wanted.max(initial=0)))
    utterances = np.arange(len(gold))
    hit = np.isin(utterances[:, None, None] * base + found, np.repeat(utterances, size) * base + wanted).any(axis=2)
    counted = present & (size > 0)[:, None]  # [U, K]
    total = counted.sum(axis=0)
    if not total.any():
        raise ValueError("no utterance has both a keyword and a gold subword")
    hits = (hit & counted).sum(axis=0)
    rates = {f"kw{k + 1}": 100.0 * int(hits[k]) / int(total[k]) for k in range(len(total)) if total[k]}
    rates["avg"] = sum(rates.values()) / len(rates)
    return rates


def count_utterances(gold: Iterable[Collection[int]]) -> Counter[int]:
    """In how many utterances every subword occurs."""
    return Counter(identity for ids in gold for identity in set(ids))


def most_frequent(counts: Mapping[int, int], subwords: Subwords, k: int, exclude: Collection[int]) -> list[int]:
    """The k ids of the table with the highest counts, without exclude; of equal counts the lower id comes first."""
    known = set(subwords.ids.tolist()) - set(exclude)
    ranked = sorted((i for i in counts if i in known), key=lambda identity: (-counts[identity], identity))
    if len(ranked) < k:
        raise ValueError(f"{k} frequent subwords asked for, the training captions hold {len(ranked)} of the table")
    return ranked[:k]


def keyword_report(
    z: ArrayLike,
    mask: ArrayLike,
    subwords: Subwords,
    gold: Sequence[Collection[int]],
    gold_reference: Sequence[Collection[int]],
    train_counts: Mapping[int, int],
) -> dict[str, Any]:
    """``{"clean", "reference", "content_top1", "frequency_prior", "n_utterances"}``, see the module for the scores.

    z [U, K, D]; mask [U, K], true where the utterance has that keyword; gold, the content subwords of every caption;
    gold_reference, the ids of its padded token sequence with the special ones; train_counts, in how many TRAINING
    utterances a subword occurs. "frequency_prior" holds the same three scores when every keyword's neighbours are the
    5 (content_top1: 1) most frequent subwords of training, whatever was said. "n_utterances": counted for each score.
    "repetition": see :func:`repetition`, of the subwords that keywords are quantised to.
    """
    vectors, present = np.asarray(z), np.asarray(mask, dtype=bool)
    if len(gold_reference) != len(gold):
        raise ValueError(f"{len(gold)} gold sets and {len(gold_reference)} reference gold sets do not fit")
    if vectors.ndim != 3 or present.shape != vectors.shape[:2]:
        raise ValueError(f"z {vectors.shape} and mask {present.shape} do not fit")
    vectors = np.where(present[:, :, None], vectors, 0)  # what stands in absent places is never looked at
    no_content = subwords.special_ids | subwords.stop_ids
    golds = {
        "clean": [set(ids) - subwords.special_ids for ids in gold],
        "reference": gold_reference,
        "content_top1": [set(ids) - no_content for ids in gold],
    }
    clean = nearest(vectors, subwords.embeddings, NEIGHBOURS, subwords.special)[0]  # [U, K, 5]
    found = {
        "clean": clean,
        "reference": _neighbours_of_rows(clean[..., 0], subwords.embeddings),  # quantised: to the first of them
        "content_top1": nearest(vectors, subwords.embeddings, 1, subwords.no_content)[0],
    }
    frequent = most_frequent(train_counts, subwords, NEIGHBOURS, subwords.special_ids)
    prior = {
        "clean": frequent,
        "reference": frequent,
        "content_top1": most_frequent(train_counts, subwords, 1, no_content),
    }
    report: dict[str, Any] = {
        score: hit_rates(subwords.ids[rows], present, golds[score]) for score, rows in found.items()
    }
    report["frequency_prior"] = {
        score: hit_rates(np.broadcast_to(ids, (*present.shape, len(ids))), present, golds[score])
        for score, ids in prior.items()
    }
    report["repetition"] = repetition(clean[..., 0], present)
    report["n_utterances"] = {
        score: sum(1 for ids, row in zip(sets, present, strict=True) if ids and row.any())
        for score, sets in golds.items()
    }
    return report


def repetition(rows: Ints, mask: Bools) -> dict[str, float]:
    """``{"keywords", "distinct", "duplicates"}``: mean number of keywords of an utterance, mean number of different
    rows among them, and the percentage of keywords whose row another of the utterance has already.

    rows, mask [U, K]. Utterances without keywords are not counted. Raises ValueError where none has one.
    """
    utterance, place = np.nonzero(mask)
    if not len(utterance):
        raise ValueError("no utterance has a keyword")
    distinct = len(np.unique(np.stack([utterance, rows[utterance, place]]), axis=1).T)
    with_keywords = int(mask.any(axis=1).sum())
    return {
        "keywords": len(utterance) / with_keywords,
        "distinct": distinct / with_keywords,
        "duplicates": 100.0 * (len(utterance) - distinct) / len(utterance),
    }


def keyword_records(
    utterances: Sequence[str],
    captions: Sequence[str],
    z: ArrayLike,
    mask: ArrayLike,
    attention: Sequence[ArrayLike],
    frame_seconds: float,
    subwords: Subwords,
    strings: Mapping[int, str],
    k: int = NEIGHBOURS,
    span_mass: float = 0.5,
    segments: Sequence[ArrayLike] | None = None,
) -> Iterator[dict[str, Any]]:
    """One dictionary for every keyword: ``utterance, keyword, neighbours, span, caption``.

    z [U, K, D]; mask [U, K]; attention, every utterance's weights [k_u, T_u] over its frames; strings, id -> subword.
    "keyword" counts from 1; "neighbours" are the k nearest subwords of z_k without special ones, best first, as
    ``{"subword", "id", "cosine"}``; "span" in seconds is the keyword's row of ``segments``, [k_u, 2] of every
    utterance, or where there are none `attention_span`, of ``span_mass``.
    """
    present = np.asarray(mask, dtype=bool)
    vectors = np.where(present[:, :, None], np.asarray(z), 0)
    rows, cosines = nearest(vectors, subwords.embeddings, k, subwords.special)
    for u, utterance in enumerate(utterances):
        weights = np.asarray(attention[u])
        cut = None if segments is None else np.asarray(segments[u]).tolist()
        for keyword in np.flatnonzero(present[u]).tolist():
            span = cut[keyword] if cut is not None else attention_span(weights[keyword], frame_seconds, span_mass)
            near = zip(subwords.ids[rows[u, keyword]].tolist(), cosines[u, keyword].tolist(), strict=True)
            yield {
                "utterance": utterance,
                "keyword": keyword + 1,
                "neighbours": [{"subword": strings[i], "id": i, "cosine": round(c, 4)} for i, c in near],
                "span": [round(second, 4) for second in span],
                "caption": captions[u],
            }


def _neighbours_of_rows(rows: Ints, table: Floats) -> Ints:
    """The rows [..., 5] of the table nearest to each of its own rows [...]: a search for every distinct one."""
    used, place = np.unique(rows, return_inverse=True)
    return nearest(table[used], table, NEIGHBOURS)[0][place.reshape(rows.shape)]


def _finite(values: ArrayLike, name: str) -> Floats:
    """A finite floating-point array in at least single precision."""
    array = np.asarray(values)
    array = array.astype(np.result_type(array, np.float32), copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return array


def _unit(rows: Floats) -> Floats:
    """Rows [N, D] of length one; rows of zeros stay."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)
