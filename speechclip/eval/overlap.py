"""Overlap in time between a keyword and the spoken word that it names.

A keyword names its nearest content subword, and every spoken word that contains this subword.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.data.alignments import AlignedWord
from speechclip.eval.bootstrap import interval
from speechclip.eval.keyword_data import CONTENT, KeywordEvalData

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class SpokenWords:
    """Spoken words of U utterances with their times. A word has one entry for each of its subwords.

    Attributes:
        key: utterance * base + subword id of each entry, ascending, [E].
        start: seconds, [E].
        end: seconds, [E].
        base: a number above every id.
        aligned: whether each utterance has an alignment, [U].
    """

    key: Ints
    start: Floats
    end: Floats
    base: int
    aligned: Bools

    @classmethod
    def of(cls, words: Sequence[Sequence[AlignedWord]], ids: Mapping[str, Sequence[int]], most: int) -> SpokenWords:
        """Build from aligned words.

        Args:
            words: the words of every utterance, empty without an alignment.
            ids: subword ids by the text of the word.
            most: the largest id that keywords name.
        """
        base = 1 + max([most, *(identity for row in ids.values() for identity in row)])
        entries = [
            (u * base + identity, word.start, word.end)
            for u, spoken in enumerate(words) for word in spoken for identity in dict.fromkeys(ids[word.text])
        ]  # fmt: skip
        columns = np.array(entries, dtype=np.float64).reshape(-1, 3)
        order = np.argsort(columns[:, 0], kind="stable")
        key = np.array([entry[0] for entry in entries], dtype=np.int64)[order]
        aligned = np.array([len(spoken) > 0 for spoken in words], dtype=bool)
        return cls(key, columns[order, 1], columns[order, 2], base, aligned)


@dataclass(frozen=True)
class Overlaps:
    """The overlaps of N keywords.

    Attributes:
        counted: whether the utterance has an alignment, [N].
        named: whether the keyword names a word of it, [N].
        hit: whether the span overlaps such a word in time, [N].
        chance: the probability of a hit for the same span at a random position in the utterance, [N].
    """

    counted: Bools
    named: Bools
    hit: Bools
    chance: Floats


def overlapping(words: Sequence[AlignedWord], start: float, end: float) -> list[AlignedWord]:
    """Return the words that are spoken at least in part between start and end, in seconds."""
    return [word for word in words if min(word.end, end) > max(word.start, start)]


def find_overlaps(
    spans: ArrayLike, owner: Ints, named: Ints, spoken: SpokenWords, seconds: Floats, words_of: Ints | None = None
) -> Overlaps:
    """Find the word of every keyword and compare the times.

    Args:
        spans: start and end of each keyword in seconds, [N, 2].
        owner: the utterance of each keyword, [N].
        named: the subword id of each keyword, [N].
        spoken: the spoken words.
        seconds: lengths of the utterances, [U].
        words_of: the utterance whose words each utterance is scored against, [U]. The times are
            stretched to its length. None: its own words.
    """
    start, end = np.asarray(spans, dtype=np.float64).reshape(-1, 2).T
    other = owner if words_of is None else words_of[owner]
    length = seconds[owner]
    stretch = np.ones(len(owner)) if words_of is None else length / seconds[other]
    keys = other * spoken.base + named
    first, last = (np.searchsorted(spoken.key, keys, side=side) for side in ("left", "right"))
    count = last - first
    keyword = np.repeat(np.arange(len(keys)), count)  # [P] pairs of a keyword and a word it names
    entry = np.arange(len(keyword)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    word_start, word_end = spoken.start[entry] * stretch[keyword], spoken.end[entry] * stretch[keyword]
    overlapped = np.minimum(end[keyword], word_end) > np.maximum(start[keyword], word_start)
    hit = np.bincount(keyword, weights=overlapped, minlength=len(keys)) > 0
    # a random span starts in [0, room]. It overlaps a word if it starts in (word_start - its length, word_end)
    room = np.maximum(length - (end - start), 0.0)
    low = np.clip(word_start - (end - start)[keyword], 0, room[keyword])
    high = np.clip(word_end, 0, room[keyword])
    covered = _union(keyword, low, high, len(keys))
    chance = np.where(room > 0, covered / np.where(room > 0, room, 1), hit)
    return Overlaps(spoken.aligned[other], count > 0, hit, chance)


def overlap_report(
    data: KeywordEvalData, spans: ArrayLike, spoken: SpokenWords, seconds: Floats, kind: str
) -> dict[str, Any]:
    """Return the percentage of spans that overlap the word that their keyword names.

    Args:
        data: the keywords.
        spans: start and end of each keyword in seconds, [N, 2].
        spoken: the spoken words.
        seconds: lengths of the utterances, [U].
        kind: "segments" or "attention spans", for the reader.
    Returns:
        "named": the percentage of keywords of aligned utterances that name a spoken word.
        "overlap", "kw1", ...: the percentage of these whose span overlaps the word.
        "mean_seconds": mean length of a span.
        "random_position": the expected "overlap" of the same spans at random positions.
        "frequency_prior": if every keyword names the most frequent content subword.
        "shuffled_speech": against the words and times of an utterance of another image, stretched to the same length.
        "ci95", "n_keywords", "n_named", "n_utterances".
    """
    owner, frequent = data.index.owner, data.frequent[CONTENT][0]
    named = data.subwords.ids[data.nearest[CONTENT].rows[:, 0]]
    own = find_overlaps(spans, owner, named, spoken, seconds)
    pairs = np.asarray(spans, dtype=np.float64).reshape(-1, 2)
    columns = _columns(data, own)
    sums = columns.sum(axis=0)
    if not sums[0]:
        raise ValueError("no utterance with a keyword has an alignment")
    report: dict[str, Any] = {"of": kind, **_shares(sums)}
    if sums[1]:
        report |= {name: v for name, v in data.rates.row(own.hit, own.counted & own.named).items() if name != "avg"}
    report |= {
        "mean_seconds": float((pairs[:, 1] - pairs[:, 0])[own.counted].mean()), "n_keywords": int(sums[0]),
        "n_named": int(sums[1]), "n_utterances": int(len(np.unique(owner[own.counted]))),
        "random_position": {"overlap": 100.0 * float(sums[3] / max(sums[1], 1))},
        "frequency_prior": _shares(
            _columns(data, find_overlaps(spans, owner, np.full(len(owner), frequent), spoken, seconds)).sum(axis=0)
        ),
    }  # fmt: skip
    if data.shuffled_index is not None:
        other = find_overlaps(spans, owner, named, spoken, seconds, data.shuffled_index)
        report["shuffled_speech"] = _shares(_columns(data, other).sum(axis=0))
    if data.rates.bootstrap is not None:
        drawn = data.rates.bootstrap.sums(columns)
        shares = 100 * np.stack([_ratio(drawn[:, 1], drawn[:, 0]), _ratio(drawn[:, 2], drawn[:, 1])], axis=1)
        low, high = interval(shares)
        report["ci95"] = {name: [float(low[at]), float(high[at])] for at, name in enumerate(("named", "overlap"))}
    return report


def _columns(data: KeywordEvalData, found: Overlaps) -> Floats:
    """Return [U, 4]: keywords that count, that name a word, that overlap it, and that would overlap it by chance."""
    owner, utterances = data.index.owner, data.index.shape[0]
    named = found.counted & found.named
    weights = (found.counted, named, named & found.hit, np.where(named, found.chance, 0.0))
    return np.stack([np.bincount(owner, weights=weight, minlength=utterances) for weight in weights], axis=1)


def _shares(sums: Floats) -> dict[str, float]:
    return {"named": 100.0 * float(sums[1] / max(sums[0], 1)), "overlap": 100.0 * float(sums[2] / max(sums[1], 1))}


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _union(group: Ints, low: Floats, high: Floats, groups: int) -> Floats:
    """Return the length of the union of the intervals [P] of each group, [groups]."""
    if not len(group):
        return np.zeros(groups)
    order = np.lexsort((low, group))
    group, low, high = group[order], low[order], high[order]
    apart = group * (1.0 + float(high.max()))  # moves the groups apart, so that one running maximum is enough
    reached = np.maximum.accumulate(high + apart) - apart
    before = np.concatenate([[-np.inf], (reached + apart)[:-1]]) - apart  # of another group: below zero
    new = np.maximum(0.0, high - np.maximum(low, before))
    return np.bincount(group, weights=new, minlength=groups).astype(np.float64)
