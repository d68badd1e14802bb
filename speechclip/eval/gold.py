"""Gold sets of keywords: the subwords and words of captions, and controls that do not use the speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.eval.neighbours import Subwords
from speechclip.eval.stopwords import is_stop_word

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Word(NamedTuple):
    """A word of a caption and the ids of its subwords."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class IdSets:
    """A set of token ids for each of U utterances, as pairs (owner, id). Pairs are sorted and distinct.

    Attributes:
        owner: the utterance of each pair, [P].
        ids: the token id of each pair, [P].
        size: the number of ids of each utterance, [U].
    """

    owner: Ints
    ids: Ints
    size: Ints

    @classmethod
    def of(cls, sets: Sequence[Collection[int]]) -> IdSets:
        """Build from one collection of ids for each utterance."""
        distinct = [sorted(set(ids)) for ids in sets]
        size = np.array([len(ids) for ids in distinct], dtype=np.int64)
        ids = np.fromiter((i for row in distinct for i in row), dtype=np.int64, count=int(size.sum()))
        return cls(np.repeat(np.arange(len(sets)), size), ids, size)

    def without(self, ids: Iterable[int]) -> IdSets:
        """Return the sets without some ids."""
        kept = ~np.isin(self.ids, np.fromiter(ids, dtype=np.int64))
        owner = self.owner[kept]
        return IdSets(owner, self.ids[kept], np.bincount(owner, minlength=len(self.size)))

    def contain(self, owner: ArrayLike, ids: ArrayLike) -> Bools:
        """Return whether each of ids [...] is in the set of its owner [...]. The two arrays broadcast."""
        o, i = np.broadcast_arrays(np.asarray(owner, dtype=np.int64), np.asarray(ids, dtype=np.int64))
        # owner and id in one number, so that one search is enough
        base = 1 + max(int(self.ids.max(initial=0)), int(i.max(initial=0)))
        pairs, wanted = self.owner * base + self.ids, o * base + i
        at = np.searchsorted(pairs, wanted)
        contained: Bools = (at < len(pairs)) & (np.append(pairs, -1)[at] == wanted)
        return contained

    def intersects(self, owner: Ints, ids: ArrayLike) -> Bools:
        """Return whether any of ids [N, k], or of ids [k] for all, is in the set of its owner [N], as [N]."""
        hit: Bools = np.logical_or.reduce(self.contain(owner[:, None], ids), axis=1)
        return hit

    def rows(self, subwords: Subwords) -> Ints:
        """Return the rows of the table for the ids, padded with -1, [U, G]. Ids outside the table are left out."""
        place = np.full(1 + max(int(self.ids.max(initial=0)), int(subwords.ids.max(initial=0))), -1, dtype=np.int64)
        place[subwords.ids] = np.arange(len(subwords.ids))
        row = place[self.ids]
        owner, row = self.owner[row >= 0], row[row >= 0]
        size = np.bincount(owner, minlength=len(self.size))
        padded = np.full((len(self.size), int(size.max(initial=0))), -1, dtype=np.int64)
        padded[owner, np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)] = row
        return padded


@dataclass(frozen=True)
class CaptionWords:
    """The distinct words of U captions as entries (word, id). An entry is a word and one of its subwords.

    Attributes:
        owner: the utterance of each word, ascending, [W].
        word: the word of each entry, ascending, [E].
        ids: the subword id of each entry, [E].
        texts: the words, W.
    """

    owner: Ints
    word: Ints
    ids: Ints
    texts: tuple[str, ...]

    @classmethod
    def of(
        cls, captions: Sequence[Sequence[Word]], left_out: Collection[int] = (), stop_words: bool = True
    ) -> CaptionWords:
        """Collect the words of captions. Words without a subword left are dropped.

        Args:
            captions: the words of each caption.
            left_out: ids that do not count as parts of words.
            stop_words: keep stop words.
        """
        owner: list[int] = []
        word: list[int] = []
        ids: list[int] = []
        texts: list[str] = []
        for utterance, caption in enumerate(captions):
            for text, subwords in dict(caption).items():
                kept = sorted(set(subwords) - set(left_out))
                if kept and (stop_words or not is_stop_word(text)):
                    word += [len(texts)] * len(kept)
                    ids += kept
                    owner.append(utterance)
                    texts.append(text)
        owners, numbers, subwords_of = (np.array(column, dtype=np.int64) for column in (owner, word, ids))
        return cls(owners, numbers, subwords_of, tuple(texts))


def count_utterances(gold: Iterable[Collection[int]]) -> Counter[int]:
    """Count the utterances that have each subword."""
    return Counter(identity for ids in gold for identity in set(ids))


def by_frequency(counts: Mapping[int, int], subwords: Subwords, exclude: Collection[int]) -> list[int]:
    """Return the counted ids of the table, most frequent first, then by id, without ``exclude``."""
    known = set(subwords.ids.tolist()) - set(exclude)
    return sorted((i for i in counts if i in known), key=lambda identity: (-counts[identity], identity))


def most_frequent(counts: Mapping[int, int], subwords: Subwords, k: int, exclude: Collection[int]) -> list[int]:
    """Return the first k ids of :func:`by_frequency`.

    Raises:
        ValueError: there are fewer than k.
    """
    ranked = by_frequency(counts, subwords, exclude)
    if len(ranked) < k:
        raise ValueError(f"{k} frequent subwords are needed, the training captions contain {len(ranked)} of the table")
    return ranked[:k]


def other_images(images: ArrayLike, seed: int = 0) -> Ints | None:
    """Draw a permutation [U] that maps every utterance to an utterance of another image.

    Utterances are ordered so that those of an image are adjacent. Then a shift by at least the size of the largest
    image leads to another image.

    Returns:
        the permutation; None if more than half of the utterances belong to one image.
    """
    clusters: Ints = np.unique(np.asarray(images), return_inverse=True)[1].reshape(-1)
    total, largest = len(clusters), int(np.bincount(clusters).max())
    if 2 * largest > total:
        return None
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(total)
    places = generator.permutation(int(clusters.max()) + 1)[clusters[shuffled]]
    order = shuffled[np.argsort(places, kind="stable")]
    shuffled_index = np.empty(total, dtype=np.int64)
    shuffled_index[order] = np.roll(order, int(generator.integers(largest, total - largest + 1)))
    return shuffled_index


def draws_expected(counts: Mapping[int, int], known: Collection[int], number: NDArray[Any]) -> NDArray[np.float64]:
    """Return the expected number of distinct subwords in a number [...] of independent draws by frequency."""
    weights = np.array([counts[identity] for identity in known if counts.get(identity)], dtype=np.float64)
    missed = 1 - weights / weights.sum()
    distinct = np.array([(1 - missed**n).sum() for n in range(int(number.max(initial=0)) + 1)])
    return distinct[number]
