"""Keywords of an utterance as a set: how many differ, and which words of the caption they name.

A keyword's subword is the one nearest to it. "all": special tokens are excluded alone; "content": stop words are, too,
of keywords and of captions.

What is counted of words is words, the same on both sides. A keyword names every word of the caption that its subword is
part of; a subword that is part of none is taken for a word that is not there. Of an utterance each counts once, so that
"snow" and "man" find one word of a caption with "snowman", and a keyword that comes again changes nothing:

precision  of the words named, how many are in the caption
recall     of the different words of the caption, how many are named
f1         the harmonic mean of the two

"whole_precision", "whole_recall" and "whole_f1" are the same where a word is found only when all of its subwords are
named; one that is named in part is then a wrong one. Counts are summed over utterances before they are divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.bootstrap import interval
from speechclip.eval.case import CONTENT, KeywordEvalData
from speechclip.eval.gold import CaptionWords, Word, draws_expected
from speechclip.eval.rates import KeywordIndex

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

REPETITION = ("keywords", "distinct", "duplicates")
MEASURES = ("precision", "recall", "f1", "whole_precision", "whole_recall", "whole_f1")


def repetition(rows: Ints, places: KeywordIndex) -> dict[str, float]:
    """``{"keywords", "distinct", "duplicates"}``: mean number of keywords of an utterance, mean number of different
    rows among them, and the percentage of keywords whose row another of the utterance has already.

    rows: [N], of each keyword. Utterances without keywords are not counted.
    """
    return dict(zip(REPETITION, _repetition(_repetition_columns(rows, places).sum(axis=0)).tolist(), strict=True))


def distinct_report(case: KeywordEvalData, kind: str, seed: int) -> dict[str, Any]:
    """:func:`repetition` of the nearest subwords, with "ci95" and what two things without the utterance would show.

    "frequency_prior": as many independent draws by frequency in the training captions, their expectation.
    "shuffled_speech": every keyword is taken from another utterance (which has a keyword of that number).
    """
    rows, places = case.near[kind].rows[:, 0], case.places
    columns = _repetition_columns(rows, places)
    report: dict[str, Any] = repetition(rows, places)
    if case.rates.bootstrap is not None:
        report["ci95"] = _intervals(REPETITION, _repetition(case.rates.bootstrap.sums(columns)))
    drawn = columns.copy()
    drawn[:, 1] = draws_expected(case.counts, case.frequent[kind], places.counts)
    report["frequency_prior"] = dict(zip(REPETITION, _repetition(drawn.sum(axis=0)).tolist(), strict=True))
    if case.shuffled_index is not None:
        report["shuffled_speech"] = repetition(_exchanged(rows, places, seed), places)
    return report


def word_report(case: KeywordEvalData, kind: str, captions: Sequence[Sequence[Word]]) -> dict[str, Any]:
    """`MEASURES` of the words that an utterance's keywords name, against those of its caption, in percent.

    "frequency_prior": an utterance with n keywords has the n most frequent subwords in their place;
    "shuffled_speech": against the caption of another image; "ci95"; "n_words" and "n_named": words of the captions, and
    words named.
    """
    words, places = _caption_words(case, kind, captions), case.places
    nearest = case.subwords.ids[case.near[kind].rows[:, 0]]
    everyone = np.arange(places.shape[0])
    columns = _word_columns(words, places.owner, nearest, everyone)
    wrong, right, _, total = columns.sum(axis=0).astype(int).tolist()
    report: dict[str, Any] = {**_named(columns), "n_words": total, "n_named": wrong + right}
    if case.rates.bootstrap is not None:
        report["ci95"] = _intervals(MEASURES, word_measures(case.rates.bootstrap.sums(columns)))
    frequent = np.array(case.frequent[kind], dtype=np.int64)
    known = places.number < len(frequent)
    prior = _word_columns(words, places.owner[known], frequent[places.number[known]], everyone)
    report["frequency_prior"] = _named(prior)
    if case.shuffled_index is not None:
        report["shuffled_speech"] = _named(_word_columns(words, places.owner, nearest, case.shuffled_index))
    return report


def word_counts(case: KeywordEvalData, kind: str, captions: Sequence[Sequence[Word]]) -> Floats:
    """What every utterance adds to the counts behind `word_report`, [U, 4]; :func:`word_measures` takes their sums."""
    nearest = case.subwords.ids[case.near[kind].rows[:, 0]]
    words, everyone = _caption_words(case, kind, captions), np.arange(case.places.shape[0])
    return _word_columns(words, case.places.owner, nearest, everyone)


def _caption_words(case: KeywordEvalData, kind: str, captions: Sequence[Sequence[Word]]) -> CaptionWords:
    """The words to find. Raises ValueError where there is none."""
    special, stop = case.subwords.special_ids, case.subwords.stop_ids
    content = kind == CONTENT
    words = CaptionWords.of(captions, special | stop if content else special, stop_words=not content)
    if not len(words.owner):
        raise ValueError("no caption has a word to find")
    return words


def _named(columns: Floats) -> dict[str, float]:
    """`MEASURES` of all utterances, [U, 4], together."""
    return dict(zip(MEASURES, word_measures(columns.sum(axis=0)).tolist(), strict=True))


def _repetition_columns(rows: Ints, places: KeywordIndex) -> Floats:
    """[U, 3]: keywords, different rows among them, and whether there are any."""
    counts = places.counts
    pairs = np.unique(np.stack([places.owner, rows]), axis=1)
    return np.stack([counts, np.bincount(pairs[0], minlength=len(counts)), counts > 0], axis=1).astype(np.float64)


def _repetition(sums: Floats) -> Floats:
    """Sums [..., 3] to `REPETITION` [..., 3]."""
    keywords, distinct, utterances = np.moveaxis(sums, -1, 0)
    some = np.maximum(utterances, 1)
    return np.stack([keywords / some, distinct / some, 100 * (keywords - distinct) / np.maximum(keywords, 1)], axis=-1)


def _exchanged(rows: Ints, places: KeywordIndex, seed: int) -> Ints:
    """The rows [N], each moved to another utterance's keyword of the same number."""
    generator, exchanged = np.random.default_rng(seed), rows.copy()
    for number in range(places.shape[1]):
        order = generator.permutation(np.flatnonzero(places.number == number))
        exchanged[order] = rows[np.roll(order, 1)]
    return exchanged


def _word_columns(words: CaptionWords, owner: Ints, nearest: Ints, caption_of: Ints) -> Floats:
    """[U, 4]: subwords that are of no word, words named, words named whole, words.

    owner, nearest: [n] utterances, and the subwords of their keywords. caption_of: [U], whose words each utterance is
    asked for.
    """
    utterances = len(caption_of)
    base = 1 + max(int(nearest.max(initial=0)), int(words.ids.max(initial=0)))
    # who is asked about a word: the utterance whose caption it is taken for (a permutation, so there is just one)
    asked = np.empty(utterances, dtype=np.int64)
    asked[caption_of] = np.arange(utterances)
    word_owner = asked[words.owner]
    heard = np.unique(owner * base + nearest)
    entries = word_owner[words.word] * base + words.ids
    wrong = heard[~np.isin(heard, entries)]
    hits = np.bincount(words.word, weights=np.isin(entries, heard), minlength=len(words.owner))
    size = np.bincount(words.word, minlength=len(words.owner))
    columns = [np.bincount(wrong // base, minlength=utterances)]
    columns += [np.bincount(word_owner[found], minlength=utterances) for found in (hits > 0, hits == size, size > 0)]
    return np.stack(columns, axis=1).astype(np.float64)


def word_measures(sums: Floats) -> Floats:
    """Sums [..., 4] of :func:`word_counts` to `MEASURES` [..., 6] in percent; of nothing 0."""
    wrong, part, whole, words = np.moveaxis(sums, -1, 0)
    found = []
    for right in (part, whole):
        precision, recall = right / np.maximum(wrong + part, 1), right / np.maximum(words, 1)
        both = precision + recall
        found += [precision, recall, np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)]
    return 100 * np.stack(found, axis=-1)


def _intervals(names: Sequence[str], resampled: Floats) -> dict[str, list[float]]:
    """The interval of each column of resampled values [n, M]."""
    low, high = interval(resampled)
    return {name: [float(low[at]), float(high[at])] for at, name in enumerate(names)}
