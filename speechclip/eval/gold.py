"""What keywords are compared with: the subwords and words of captions, and what knows nothing of the speech."""

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
    """A set of token ids for each of U utterances: pairs (owner, id), sorted, each once."""

    owner: Ints
    ids: Ints
    size: Ints  # [U]

    @classmethod
    def of(cls, sets: Sequence[Collection[int]]) -> IdSets:
        """From a collection of ids an utterance."""
        distinct = [sorted(set(ids)) for ids in sets]
        size = np.array([len(ids) for ids in distinct], dtype=np.int64)
        ids = np.fromiter((i for row in distinct for i in row), dtype=np.int64, count=int(size.sum()))
        return cls(np.repeat(np.arange(len(sets)), size), ids, size)

    def without(self, ids: Iterable[int]) -> IdSets:
        """The sets without some ids."""
        kept = ~np.isin(self.ids, np.fromiter(ids, dtype=np.int64))
        owner = self.owner[kept]
        return IdSets(owner, self.ids[kept], np.bincount(owner, minlength=len(self.size)))

    def contain(self, owner: ArrayLike, ids: ArrayLike) -> Bools:
        """Whether each of ids [...] is in the set of its owner [...]; the two broadcast."""
        o, i = np.broadcast_arrays(np.asarray(owner, dtype=np.int64), np.asarray(ids, dtype=np.int64))
        # owner and id in one number, so that one search serves all
        base = 1 + max(int(self.ids.max(initial=0)), int(i.max(initial=0)))
        mine, asked = self.owner * base + self.ids, o * base + i
        at = np.searchsorted(mine, asked)
        found: Bools = (at < len(mine)) & (np.append(mine, -1)[at] == asked)
        return found

    def intersects(self, owner: Ints, ids: ArrayLike) -> Bools:
        """Whether any of ids [N, k], or of the same ids [k] for all, is in the set of its owner: [N]."""
        found: Bools = np.logical_or.reduce(self.contain(owner[:, None], ids), axis=1)
        return found

    def rows(self, subwords: Subwords) -> Ints:
        """The rows of the table that the sets name, padded with -1: [U, G]. Ids that the table lacks are left out."""
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
    """Different words of U captions as entries (word, id). owner: [W] utterance of each word, ascending.

    word, ids: [E] the word of each entry, ascending, and one of its subwords, each once. texts: [W].
    """

    owner: Ints
    word: Ints
    ids: Ints
    texts: tuple[str, ...]

    @classmethod
    def of(
        cls, captions: Sequence[Sequence[Word]], left_out: Collection[int] = (), stop_words: bool = True
    ) -> CaptionWords:
        """The words of captions, without those that nothing is left of and, where so asked for, without stop words.

        left_out: ids that are no part of any word.
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
    """In how many utterances every subword occurs."""
    return Counter(identity for ids in gold for identity in set(ids))


def by_frequency(counts: Mapping[int, int], subwords: Subwords, exclude: Collection[int]) -> list[int]:
    """Ids of the table that occur, most frequent first, without exclude; of equal counts the lower id comes first."""
    known = set(subwords.ids.tolist()) - set(exclude)
    return sorted((i for i in counts if i in known), key=lambda identity: (-counts[identity], identity))


def most_frequent(counts: Mapping[int, int], subwords: Subwords, k: int, exclude: Collection[int]) -> list[int]:
    """The first k of `by_frequency`. Raises ValueError where there are fewer."""
    ranked = by_frequency(counts, subwords, exclude)
    if len(ranked) < k:
        raise ValueError(f"{k} frequent subwords asked for, the training captions hold {len(ranked)} of the table")
    return ranked[:k]


def other_images(images: ArrayLike, seed: int = 0) -> Ints | None:
    """A random permutation [U] that gives every utterance one of another image; None where an image has over half.

    With utterances in an order in which those of an image stand together, one as far away as the largest image is long
    belongs to another image.
    """
    clusters: Ints = np.unique(np.asarray(images), return_inverse=True)[1].reshape(-1)
    total, longest = len(clusters), int(np.bincount(clusters).max())
    if 2 * longest > total:
        return None
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(total)
    places = generator.permutation(int(clusters.max()) + 1)[clusters[shuffled]]
    order = shuffled[np.argsort(places, kind="stable")]
    shuffled_index = np.empty(total, dtype=np.int64)
    shuffled_index[order] = np.roll(order, int(generator.integers(longest, total - longest + 1)))
    return shuffled_index


def draws_expected(counts: Mapping[int, int], known: Collection[int], number: NDArray[Any]) -> NDArray[np.float64]:
    """How many different subwords so many independent draws by frequency, [...], are expected to hold."""
    weights = np.array([counts[identity] for identity in known if counts.get(identity)], dtype=np.float64)
    missed = 1 - weights / weights.sum()
    distinct = np.array([(1 - missed**n).sum() for n in range(int(number.max(initial=0)) + 1)])
    return distinct[number]
