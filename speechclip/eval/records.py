"""Keywords one by one, for people and for the report: keywords.jsonl, and the attention behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.common.files import replacing
from speechclip.data.alignments import AlignedWord
from speechclip.eval.case import ALL, CONTENT, KeywordEvalData
from speechclip.eval.gold import Word
from speechclip.eval.keywords import NEIGHBOURS
from speechclip.eval.neighbours import Subwords
from speechclip.eval.overlap import overlapping

Floats = NDArray[np.floating[Any]]


def keyword_records(
    utterances: Sequence[str],
    captions: Sequence[str],
    case: KeywordEvalData,
    spans: ArrayLike,
    strings: Mapping[int, str],
    words: Sequence[Sequence[Word]],
    spoken: Mapping[str, Sequence[AlignedWord]] | None = None,
    overlap: Sequence[bool | None] | None = None,
    k: int = NEIGHBOURS,
) -> Iterator[dict[str, Any]]:
    """One dictionary for every keyword: ``utterance, keyword, neighbours, span, caption, hit, gold, word, overlap,
    spoken``.

    case: of the U utterances and N keywords. spans: [N, 2] seconds. strings: id -> subword. words: of every caption.
    spoken: words and their times by utterance; overlap: [N], as :func:`speechclip.eval.overlap.overlaps` says.

    "keyword" counts from 1; "neighbours" are the k nearest subwords of z_k without special ones, best first, as
    ``{"subword", "id", "cosine"}``; "hit": one of the first 5 is in the caption; "gold": the subword of the caption
    nearest to z_k, likewise; "word": the word of the caption that the nearest content subword belongs to; "overlap":
    whether the span overlaps such a word as spoken; "spoken": the words that it does overlap. None where unknown.
    """
    near, table = case.near[ALL], case.subwords
    ids, cosines = table.ids[near.rows[:, :k]].tolist(), near.cosines[:, :k].tolist()
    named = table.ids[case.near[CONTENT].rows[:, 0]].tolist()
    hit = case.gold[ALL].intersects(case.places.owner, table.ids[near.rows[:, :NEIGHBOURS]]).tolist()
    best = case.best[ALL]
    word_of = [{identity: word.text for word in reversed(list(caption)) for identity in word.ids} for caption in words]
    times = np.round(np.asarray(spans, dtype=np.float64), 4).tolist()
    for at, (u, number) in enumerate(zip(case.places.owner.tolist(), case.places.number.tolist(), strict=True)):
        said = None if spoken is None else spoken.get(utterances[u])
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
            "spoken": None if said is None else [word.text for word in overlapping(said, *times[at])],
        }


def save_attention(path: Path, ids: Sequence[str], attention: Sequence[Floats]) -> None:
    """Write weights over frames, [k_u, T_u] of each utterance: arrays "ids", "keywords" [U], "frames" [U] and
    "weights", half precision, the flattened arrays one after the other.
    """
    shapes = np.array([weights.shape for weights in attention], dtype=np.int32).reshape(-1, 2)
    flat = [weights.astype(np.float16).ravel() for weights in attention]
    weights = np.concatenate(flat) if flat else np.empty(0, np.float16)
    names = np.array(list(ids))
    with replacing(path) as part:
        np.savez_compressed(
            part, allow_pickle=False, ids=names, keywords=shapes[:, 0], frames=shapes[:, 1], weights=weights
        )


def _subword(strings: Mapping[int, str], identity: int, cosine: float) -> dict[str, Any]:
    return {"subword": strings[identity], "id": identity, "cosine": round(cosine, 4)}


def _gold(table: Subwords, strings: Mapping[int, str], row: int, cosine: float) -> dict[str, Any] | None:
    return None if np.isnan(cosine) else _subword(strings, int(table.ids[row]), cosine)
