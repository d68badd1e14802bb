"""Whether a keyword is found where the word it names is spoken.

A keyword names its nearest content subword, and with it every spoken word that has this subword.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.data.alignments import AlignedWord
from speechclip.eval.bootstrap import interval
from speechclip.eval.case import CONTENT, KeywordEvalData

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class SpokenWords:
    """Words of U utterances with their times, as entries (utterance * base + id), ascending, one for each subword.

    key: [E]. start, end: [E] seconds. base: above every id. aligned: [U], which utterances have an alignment.
    """

    key: Ints
    start: Floats
    end: Floats
    base: int
    aligned: Bools

    @classmethod
    def of(cls, words: Sequence[Sequence[AlignedWord]], ids: Mapping[str, Sequence[int]], most: int) -> SpokenWords:
        """words: of every utterance, none where it has no alignment. ids: subwords by the word's text, maybe none.

        most: the largest id that keywords name.
        """
        base = 1 + max([most, *(identity for row in ids.values() for identity in row)])
        entries = [
            (u * base + identity, word.start, word.end)
            for u, said in enumerate(words) for word in said for identity in dict.fromkeys(ids[word.text])
        ]  # fmt: skip
        columns = np.array(entries, dtype=np.float64).reshape(-1, 3)
        order = np.argsort(columns[:, 0], kind="stable")
        key = np.array([entry[0] for entry in entries], dtype=np.int64)[order]
        aligned = np.array([len(said) > 0 for said in words], dtype=bool)
        return cls(key, columns[order, 1], columns[order, 2], base, aligned)


@dataclass(frozen=True)
class Overlaps:
    """Of N keywords. counted: of an utterance with an alignment. named: names a word there. hit: overlaps it in time.

    chance: the probability that its span, anywhere in the utterance, would.
    """

    counted: Bools
    named: Bools
    hit: Bools
    chance: Floats


def overlapping(words: Sequence[AlignedWord], start: float, end: float) -> list[AlignedWord]:
    """The words that are spoken in part or whole between start and end."""
    return [word for word in words if min(word.end, end) > max(word.start, start)]


def overlaps(
    spans: ArrayLike, owner: Ints, named: Ints, spoken: SpokenWords, seconds: Floats, asked: Ints | None = None
) -> Overlaps:
    """Look every keyword's word up and compare the times.

    Args:
        spans: [N, 2] seconds. owner: [N]. named: [N] ids. seconds: [U], lengths of the utterances.
        asked: [U], the utterance whose words are taken for each one's, stretched to its length; None: its own.
    """
    start, end = np.asarray(spans, dtype=np.float64).reshape(-1, 2).T
    other = owner if asked is None else asked[owner]
    length = seconds[owner]
    stretch = np.ones(len(owner)) if asked is None else length / seconds[other]
    keys = other * spoken.base + named
    first, last = (np.searchsorted(spoken.key, keys, side=side) for side in ("left", "right"))
    count = last - first
    keyword = np.repeat(np.arange(len(keys)), count)  # [P] pairs of a keyword and a word it names
    entry = np.arange(len(keyword)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    word_start, word_end = spoken.start[entry] * stretch[keyword], spoken.end[entry] * stretch[keyword]
    meets = np.minimum(end[keyword], word_end) > np.maximum(start[keyword], word_start)
    hit = np.bincount(keyword, weights=meets, minlength=len(keys)) > 0
    # the span may begin anywhere in [0, room]; it meets a word if it begins in (word_start - its own length, word_end)
    room = np.maximum(length - (end - start), 0.0)
    low = np.clip(word_start - (end - start)[keyword], 0, room[keyword])
    high = np.clip(word_end, 0, room[keyword])
    covered = _union(keyword, low, high, len(keys))
    chance = np.where(room > 0, covered / np.where(room > 0, room, 1), hit)
    return Overlaps(spoken.aligned[other], count > 0, hit, chance)


def overlap_report(
    case: KeywordEvalData, spans: ArrayLike, spoken: SpokenWords, seconds: Floats, kind: str
) -> dict[str, Any]:
    """The share of spans that overlap the word their keyword names, in percent.

    Args:
        spans: [N, 2] seconds. seconds: [U], lengths of the utterances. kind: what the spans are, for the reader.
    Returns:
        "named": of the keywords of utterances with an alignment, those that name a word spoken there; "overlap": of
        these, those whose span overlaps it, also "kw1" and so on; "mean_seconds" of a span; "random_position": the
        "overlap" expected of the same spans anywhere in their utterances; "frequency_prior": every keyword names the
        most frequent content subword; "shuffled_speech": words and times of an utterance of another image, stretched
        to the same length; "ci95"; "n_keywords", "n_named" and "n_utterances".
    """
    owner, frequent = case.places.owner, case.frequent[CONTENT][0]
    named = case.subwords.ids[case.near[CONTENT].rows[:, 0]]
    own = overlaps(spans, owner, named, spoken, seconds)
    pairs = np.asarray(spans, dtype=np.float64).reshape(-1, 2)
    columns = _columns(case, own)
    sums = columns.sum(axis=0)
    if not sums[0]:
        raise ValueError("no keyword of an utterance with an alignment")
    report: dict[str, Any] = {"of": kind, **_shares(sums)}
    if sums[1]:
        report |= {name: v for name, v in case.rates.row(own.hit, own.counted & own.named).items() if name != "avg"}
    report |= {
        "mean_seconds": float((pairs[:, 1] - pairs[:, 0])[own.counted].mean()), "n_keywords": int(sums[0]),
        "n_named": int(sums[1]), "n_utterances": int(len(np.unique(owner[own.counted]))),
        "random_position": {"overlap": 100.0 * float(sums[3] / max(sums[1], 1))},
        "frequency_prior": _shares(
            _columns(case, overlaps(spans, owner, np.full(len(owner), frequent), spoken, seconds)).sum(axis=0)
        ),
    }  # fmt: skip
    if case.shuffled_index is not None:
        other = overlaps(spans, owner, named, spoken, seconds, case.shuffled_index)
        report["shuffled_speech"] = _shares(_columns(case, other).sum(axis=0))
    if case.rates.bootstrap is not None:
        drawn = case.rates.bootstrap.sums(columns)
        shares = 100 * np.stack([_ratio(drawn[:, 1], drawn[:, 0]), _ratio(drawn[:, 2], drawn[:, 1])], axis=1)
        low, high = interval(shares)
        report["ci95"] = {name: [float(low[at]), float(high[at])] for at, name in enumerate(("named", "overlap"))}
    return report


def _columns(case: KeywordEvalData, found: Overlaps) -> Floats:
    """[U, 4]: counted keywords, those that name a word, those that overlap it, and how many would by chance."""
    owner, utterances = case.places.owner, case.places.shape[0]
    named = found.counted & found.named
    weights = (found.counted, named, named & found.hit, np.where(named, found.chance, 0.0))
    return np.stack([np.bincount(owner, weights=weight, minlength=utterances) for weight in weights], axis=1)


def _shares(sums: Floats) -> dict[str, float]:
    return {"named": 100.0 * float(sums[1] / max(sums[0], 1)), "overlap": 100.0 * float(sums[2] / max(sums[1], 1))}


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _union(group: Ints, low: Floats, high: Floats, groups: int) -> Floats:
    """Length of the union of intervals [P] of each group, [groups]."""
    if not len(group):
        return np.zeros(groups)
    order = np.lexsort((low, group))
    group, low, high = group[order], low[order], high[order]
    apart = group * (1.0 + float(high.max()))  # moves the groups apart, so that one running maximum serves all
    reached = np.maximum.accumulate(high + apart) - apart
    before = np.concatenate([[-np.inf], (reached + apart)[:-1]]) - apart  # of another group: below zero
    new = np.maximum(0.0, high - np.maximum(low, before))
    return np.bincount(group, weights=new, minlength=groups).astype(np.float64)
