"""The keywords of an utterance as a set: how many are distinct, and which words of the caption they name.

The subword of a keyword is the nearest one. "all" excludes special tokens only. "content" excludes stop words too, in
keywords and in captions.

Scores of words count words in keywords and in captions. A keyword names every word of the caption that contains its
subword. A subword that is in no word of the caption counts as one wrong word. Each word counts once in an utterance:
the keywords "snow" and "man" find one word of a caption with "snowman", and a repeated keyword changes nothing.

precision  The percentage of the named words that are in the caption.
recall     The percentage of the distinct words of the caption that are named.
f1         The harmonic mean of the two.

"whole_precision", "whole_recall" and "whole_f1" find a word only if all of its subwords are named. A word that is
named in part is wrong. Counts are summed over utterances before they are divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.bootstrap import interval
from speechclip.eval.gold import CaptionWords, Word, draws_expected
from speechclip.eval.keyword_data import CONTENT, KeywordEvalData
from speechclip.eval.rates import KeywordIndex

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

REPETITION = ("keywords", "distinct", "duplicates")
MEASURES = ("precision", "recall", "f1", "whole_precision", "whole_recall", "whole_f1")


def repetition(rows: Ints, index: KeywordIndex) -> dict[str, float]:
    """Count repeated keywords. Utterances without keywords do not count.

    Args:
        rows: the row of the table for each keyword, [N].
        index: the keywords.
    Returns:
        "keywords": mean number of keywords of an utterance. "distinct": mean number of distinct rows.
        "duplicates": percentage of keywords whose row another keyword of the utterance has already.
    """
    return dict(zip(REPETITION, _repetition(_repetition_columns(rows, index).sum(axis=0)).tolist(), strict=True))


def distinct_report(data: KeywordEvalData, kind: str, seed: int) -> dict[str, Any]:
    """Return :func:`repetition` of the nearest subwords, with "ci95" and two controls.

    "frequency_prior" is the expectation for the same number of independent draws by frequency in the training captions.
    "shuffled_speech" takes every keyword from another utterance that has a keyword of that number.
    """
    rows, index = data.nearest[kind].rows[:, 0], data.index
    columns = _repetition_columns(rows, index)
    report: dict[str, Any] = repetition(rows, index)
    if data.rates.bootstrap is not None:
        report["ci95"] = _intervals(REPETITION, _repetition(data.rates.bootstrap.sums(columns)))
    drawn = columns.copy()
    drawn[:, 1] = draws_expected(data.counts, data.frequent[kind], index.counts)
    report["frequency_prior"] = dict(zip(REPETITION, _repetition(drawn.sum(axis=0)).tolist(), strict=True))
    if data.shuffled_index is not None:
        report["shuffled_speech"] = repetition(_exchanged(rows, index, seed), index)
    return report


def word_report(data: KeywordEvalData, kind: str, captions: Sequence[Sequence[Word]]) -> dict[str, Any]:
    """Return `MEASURES` of the words that the keywords name, against the words of the caption, in percent.

    Args:
        data: the keywords.
        kind: `ALL` or `CONTENT`.
        captions: the words of each caption.
    Returns:
        `MEASURES` and "ci95".
        "n_words", "n_named": words of the captions, and named words.
        "frequency_prior": `MEASURES` if the n keywords of an utterance are the n most frequent subwords.
        "shuffled_speech": `MEASURES` against the caption of another image.
    """
    words, index = _caption_words(data, kind, captions), data.index
    nearest = data.subwords.ids[data.nearest[kind].rows[:, 0]]
    own_caption = np.arange(index.shape[0])
    columns = _word_columns(words, index.owner, nearest, own_caption)
    wrong, right, _, total = columns.sum(axis=0).astype(int).tolist()
    report: dict[str, Any] = {**_named(columns), "n_words": total, "n_named": wrong + right}
    if data.rates.bootstrap is not None:
        report["ci95"] = _intervals(MEASURES, word_measures(data.rates.bootstrap.sums(columns)))
    frequent = np.array(data.frequent[kind], dtype=np.int64)
    known = index.number < len(frequent)
    prior = _word_columns(words, index.owner[known], frequent[index.number[known]], own_caption)
    report["frequency_prior"] = _named(prior)
    if data.shuffled_index is not None:
        report["shuffled_speech"] = _named(_word_columns(words, index.owner, nearest, data.shuffled_index))
    return report


def word_counts(data: KeywordEvalData, kind: str, captions: Sequence[Sequence[Word]]) -> Floats:
    """Return what every utterance adds to the counts of :func:`word_report`, [U, 4], for :func:`word_measures`."""
    nearest = data.subwords.ids[data.nearest[kind].rows[:, 0]]
    words, own_caption = _caption_words(data, kind, captions), np.arange(data.index.shape[0])
    return _word_columns(words, data.index.owner, nearest, own_caption)


def _caption_words(data: KeywordEvalData, kind: str, captions: Sequence[Sequence[Word]]) -> CaptionWords:
    """Return the words to find.

    Raises:
        ValueError: no caption has a word.
    """
    special, stop = data.subwords.special_ids, data.subwords.stop_ids
    content = kind == CONTENT
    words = CaptionWords.of(captions, special | stop if content else special, stop_words=not content)
    if not len(words.owner):
        raise ValueError("no caption has a word to find")
    return words


def _named(columns: Floats) -> dict[str, float]:
    """Return `MEASURES` of the summed counts [U, 4]."""
    return dict(zip(MEASURES, word_measures(columns.sum(axis=0)).tolist(), strict=True))


def _repetition_columns(rows: Ints, index: KeywordIndex) -> Floats:
    """Return [U, 3]: keywords, distinct rows, and whether the utterance has a keyword."""
    counts = index.counts
    pairs = np.unique(np.stack([index.owner, rows]), axis=1)
    return np.stack([counts, np.bincount(pairs[0], minlength=len(counts)), counts > 0], axis=1).astype(np.float64)


def _repetition(sums: Floats) -> Floats:
    """Return `REPETITION` [..., 3] of sums [..., 3]."""
    keywords, distinct, utterances = np.moveaxis(sums, -1, 0)
    some = np.maximum(utterances, 1)
    return np.stack([keywords / some, distinct / some, 100 * (keywords - distinct) / np.maximum(keywords, 1)], axis=-1)


def _exchanged(rows: Ints, index: KeywordIndex, seed: int) -> Ints:
    """Move each row [N] to the keyword of the same number of another utterance."""
    generator, exchanged = np.random.default_rng(seed), rows.copy()
    for number in range(index.shape[1]):
        order = generator.permutation(np.flatnonzero(index.number == number))
        exchanged[order] = rows[np.roll(order, 1)]
    return exchanged


def _word_columns(words: CaptionWords, owner: Ints, nearest: Ints, caption_of: Ints) -> Floats:
    """Count words by utterance.

    Args:
        words: the words of the captions.
        owner: the utterance of each keyword, [n].
        nearest: the subword of each keyword, [n].
        caption_of: the utterance whose caption each utterance is scored against, a permutation [U].
    Returns:
        [U, 4]: subwords that are in no word, words named, words named whole, all words.
    """
    utterances = len(caption_of)
    base = 1 + max(int(nearest.max(initial=0)), int(words.ids.max(initial=0)))
    # the utterance that is scored against each caption: the inverse of the permutation
    scored = np.empty(utterances, dtype=np.int64)
    scored[caption_of] = np.arange(utterances)
    word_owner = scored[words.owner]
    named = np.unique(owner * base + nearest)
    entries = word_owner[words.word] * base + words.ids
    wrong = named[~np.isin(named, entries)]
    hits = np.bincount(words.word, weights=np.isin(entries, named), minlength=len(words.owner))
    size = np.bincount(words.word, minlength=len(words.owner))
    columns = [np.bincount(wrong // base, minlength=utterances)]
    columns += [np.bincount(word_owner[found], minlength=utterances) for found in (hits > 0, hits == size, size > 0)]
    return np.stack(columns, axis=1).astype(np.float64)


def word_measures(sums: Floats) -> Floats:
    """Return `MEASURES` [..., 6] in percent of sums [..., 4] of :func:`word_counts`; 0 if the sums are 0."""
    wrong, part, whole, words = np.moveaxis(sums, -1, 0)
    found = []
    for right in (part, whole):
        precision, recall = right / np.maximum(wrong + part, 1), right / np.maximum(words, 1)
        both = precision + recall
        found += [precision, recall, np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)]
    return 100 * np.stack(found, axis=-1)


def _intervals(names: Sequence[str], resampled: Floats) -> dict[str, list[float]]:
    """Return the interval of each column of resampled values [n, M]."""
    low, high = interval(resampled)
    return {name: [float(low[at]), float(high[at])] for at, name in enumerate(names)}
