"""Keywords of an utterance as a set: how many differ, and which words of the caption they name.

A keyword names its nearest subword. "all": special tokens are excluded alone; "content": stop words are, too, of
keywords and of captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.bootstrap import interval
from speechclip.eval.case import CONTENT, Case
from speechclip.eval.gold import CaptionWords, Word, draws_expected
from speechclip.eval.rates import Places

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

REPETITION = ("keywords", "distinct", "duplicates")
MEASURES = ("precision", "recall", "f1", "whole_words")


def repetition(rows: Ints, places: Places) -> dict[str, float]:
    """``{"keywords", "distinct", "duplicates"}``: mean number of keywords of an utterance, mean number of different
    rows among them, and the percentage of keywords whose row another of the utterance has already.

    rows: [N], of each keyword. Utterances without keywords are not counted.
    """
    return dict(zip(REPETITION, _repetition(_repetition_columns(rows, places).sum(axis=0)).tolist(), strict=True))


def distinct_report(case: Case, kind: str, seed: int) -> dict[str, Any]:
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
    if case.partner is not None:
        report["shuffled_speech"] = repetition(_exchanged(rows, places, seed), places)
    return report


def word_report(case: Case, kind: str, captions: Sequence[Sequence[Word]]) -> dict[str, Any]:
    """How well the subwords that an utterance's keywords name cover the words of its caption, in percent.

    Words of a caption and named subwords count once. precision: named subwords that belong to a word; recall: words of
    which some subword is named; f1: of these two; whole_words: words of which every subword is. Counts are summed over
    utterances before they are divided. "frequency_prior": an utterance with n keywords names the n most frequent
    subwords; "shuffled_speech": against the caption of another image; "n_words" and "n_named" are what is divided by.
    """
    special, stop = case.subwords.special_ids, case.subwords.stop_ids
    content = kind == CONTENT
    words = CaptionWords.of(captions, special | stop if content else special, stop_words=not content)
    if not len(words.owner):
        raise ValueError("no caption has a word to find")
    places = case.places
    named = case.subwords.ids[case.near[kind].rows[:, 0]]
    everyone = np.arange(places.shape[0])
    columns = _word_columns(words, places.owner, named, everyone)
    sums = columns.sum(axis=0)
    report: dict[str, Any] = dict(zip(MEASURES, _measures(sums).tolist(), strict=True))
    report |= {"n_words": int(sums[2]), "n_named": int(sums[0])}
    if case.rates.bootstrap is not None:
        report["ci95"] = _intervals(MEASURES, _measures(case.rates.bootstrap.sums(columns)))
    frequent = np.array(case.frequent[kind], dtype=np.int64)
    known = places.number < len(frequent)
    prior = _word_columns(words, places.owner[known], frequent[places.number[known]], everyone)
    report["frequency_prior"] = dict(zip(MEASURES, _measures(prior.sum(axis=0)).tolist(), strict=True))
    if case.partner is not None:
        other = _word_columns(words, places.owner, named, case.partner)
        report["shuffled_speech"] = dict(zip(MEASURES, _measures(other.sum(axis=0)).tolist(), strict=True))
    return report


def _repetition_columns(rows: Ints, places: Places) -> Floats:
    """[U, 3]: keywords, different rows among them, and whether there are any."""
    counts = places.counts
    pairs = np.unique(np.stack([places.owner, rows]), axis=1)
    return np.stack([counts, np.bincount(pairs[0], minlength=len(counts)), counts > 0], axis=1).astype(np.float64)


def _repetition(sums: Floats) -> Floats:
    """Sums [..., 3] to `REPETITION` [..., 3]."""
    keywords, distinct, utterances = np.moveaxis(sums, -1, 0)
    some = np.maximum(utterances, 1)
    return np.stack([keywords / some, distinct / some, 100 * (keywords - distinct) / np.maximum(keywords, 1)], axis=-1)


def _exchanged(rows: Ints, places: Places, seed: int) -> Ints:
    """The rows [N], each moved to another utterance's keyword of the same number."""
    generator, exchanged = np.random.default_rng(seed), rows.copy()
    for number in range(places.shape[1]):
        order = generator.permutation(np.flatnonzero(places.number == number))
        exchanged[order] = rows[np.roll(order, 1)]
    return exchanged


def _word_columns(words: CaptionWords, owner: Ints, named: Ints, caption_of: Ints) -> Floats:
    """[U, 5]: named subwords, those of them that are of a word, words, words found in part, words found whole.

    owner, named: [n] utterances and the subwords they name. caption_of: [U], whose words each utterance is asked for.
    """
    utterances = len(caption_of)
    base = 1 + max(int(named.max(initial=0)), int(words.ids.max(initial=0)))
    # who is asked about a word: the utterance whose caption it is taken for (a permutation, so there is just one)
    asked = np.empty(utterances, dtype=np.int64)
    asked[caption_of] = np.arange(utterances)
    word_owner = asked[words.owner]
    claims = np.unique(owner * base + named)
    entries = word_owner[words.word] * base + words.ids
    is_named = np.isin(entries, claims)
    right = claims[np.isin(claims, entries)]
    hits = np.bincount(words.word, weights=is_named, minlength=len(words.owner))
    size = np.bincount(words.word, minlength=len(words.owner))
    columns = [
        np.bincount(claims // base, minlength=utterances), np.bincount(right // base, minlength=utterances),
        np.bincount(word_owner, minlength=utterances), np.bincount(word_owner, weights=hits > 0, minlength=utterances),
        np.bincount(word_owner, weights=hits == size, minlength=utterances),
    ]  # fmt: skip
    return np.stack(columns, axis=1).astype(np.float64)


def _measures(sums: Floats) -> Floats:
    """Sums [..., 5] of `_word_columns` to `MEASURES` [..., 4] in percent."""
    named, right, words, part, whole = np.moveaxis(sums, -1, 0)
    precision, recall = right / np.maximum(named, 1), part / np.maximum(words, 1)
    both = precision + recall
    f1 = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)
    return 100 * np.stack([precision, recall, f1, whole / np.maximum(words, 1)], axis=-1)


def _intervals(names: Sequence[str], resampled: Floats) -> dict[str, list[float]]:
    """The interval of each column of resampled values [n, M]."""
    low, high = interval(resampled)
    return {name: [float(low[at]), float(high[at])] for at, name in enumerate(names)}
