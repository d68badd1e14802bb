"""One dictionary for every keyword, for people and for the page of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speechclip.data.alignments import AlignedWord
from speechclip.eval.gold import Word
from speechclip.eval.keyword_data import ALL, CONTENT, KeywordEvalData
from speechclip.eval.keywords import NEIGHBOURS
from speechclip.eval.neighbours import Subwords
from speechclip.eval.overlap import overlapping


def keyword_records(
    utterances: Sequence[str],
    captions: Sequence[str],
    data: KeywordEvalData,
    spans: ArrayLike,
    strings: Mapping[int, str],
    words: Sequence[Sequence[Word]],
    alignments: Mapping[str, Sequence[AlignedWord]] | None = None,
    overlap: Sequence[bool | None] | None = None,
    k: int = NEIGHBOURS,
) -> Iterator[dict[str, Any]]:
    """Yield one dictionary for every keyword.

    Args:
        utterances: U utterance ids.
        captions: U captions.
        data: the N keywords of these utterances.
        spans: start and end of each keyword in seconds, [N, 2].
        strings: subwords by id.
        words: the words of every caption.
        alignments: spoken words with their times, by utterance; None if unknown.
        overlap: whether each keyword overlaps its word, N (:func:`speechclip.eval.overlap.find_overlaps`).
        k: number of neighbours.
    Returns:
        dictionaries with these keys. The value is None if it is unknown.
        "utterance", "caption": of the keyword.
        "keyword": its number, from 1.
        "span": start and end in seconds.
        "neighbours": the k subwords nearest to z_k without special tokens, best first: ``{"subword", "id", "cosine"}``.
        "hit": whether one of the first 5 neighbours is in the caption.
        "gold": the subword of the caption that is nearest to z_k, in the form of a neighbour.
        "word": the word of the caption that the nearest content subword belongs to.
        "overlap": whether the span overlaps this word as spoken.
        "spoken": the words that the span overlaps.
    """
    nearest, table = data.nearest[ALL], data.subwords
    ids, cosines = table.ids[nearest.rows[:, :k]].tolist(), nearest.cosines[:, :k].tolist()
    named = table.ids[data.nearest[CONTENT].rows[:, 0]].tolist()
    hit = data.gold[ALL].intersects(data.index.owner, table.ids[nearest.rows[:, :NEIGHBOURS]]).tolist()
    best = data.best[ALL]
    word_of = [{identity: word.text for word in reversed(list(caption)) for identity in word.ids} for caption in words]
    times = np.round(np.asarray(spans, dtype=np.float64), 4).tolist()
    for at, (u, number) in enumerate(zip(data.index.owner.tolist(), data.index.number.tolist(), strict=True)):
        spoken = None if alignments is None else alignments.get(utterances[u])
        yield {
            "utterance": utterances[u],
            "keyword": number + 1,
            "neighbours": [_subword(strings, *pair) for pair in zip(ids[at], cosines[at], strict=True)],
            "span": times[at],
            "caption": captions[u],
            "hit": hit[at],
            "gold": _gold(table, strings, int(best[0][at]), float(best[1][at])),
            "word": word_of[u].get(named[at]),
            "overlap": None if overlap is None else overlap[at],
            "spoken": None if spoken is None else [word.text for word in overlapping(spoken, *times[at])],
        }


def _subword(strings: Mapping[int, str], identity: int, cosine: float) -> dict[str, Any]:
    return {"subword": strings[identity], "id": identity, "cosine": round(cosine, 4)}


def _gold(table: Subwords, strings: Mapping[int, str], row: int, cosine: float) -> dict[str, Any] | None:
    return None if np.isnan(cosine) else _subword(strings, int(table.ids[row]), cosine)
