"""Keyword discovery: hit rates of the subwords that are nearest to the keywords of a head.

A keyword is the vector z_k before quantisation. A hit rate is in percent of the utterances that have a k-th keyword
and a gold set that is not empty. "avg" is in percent of all keywords of utterances with such a gold set.

clean         One of the 5 subwords nearest to z_k is in the caption. Special tokens are excluded.
reference     The hit rate of the published code: one of the 5 rows nearest to the QUANTISED keyword is in the padded
              token sequence. Special tokens can be neighbours, and start, end and padding are in the gold set.
content_top1  The nearest content subword is a content subword of the caption. Stop words count in neither.

"sweep" is clean for other numbers K of neighbours, and "reference_sweep" is reference for them. Each is given with stop
words ("all") and without them in captions and neighbours ("content").

Each score is given with controls that do not use the speech. "frequency_prior" replaces the neighbours of every
keyword by the most frequent subwords of the training captions. "shuffled_speech" scores the keywords of an utterance
against the caption of another image, by a seeded permutation. It is left out if at least half of the utterances have
the same image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.eval.bootstrap import Bootstrap
from speechclip.eval.flaws import flaw_report
from speechclip.eval.gold import IdSets, Word, by_frequency, most_frequent, other_images
from speechclip.eval.keyword_data import ALL, CONTENT, KeywordEvalData
from speechclip.eval.neighbours import Subwords, best_of, finite, search, unit_rows
from speechclip.eval.rates import HitRates, KeywordIndex
from speechclip.eval.words import distinct_report, repetition, word_report

NEIGHBOURS = 5
SWEEP = (1, 3, 5, 10, 20)

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Settings:
    """Settings of the keyword scores.

    Attributes:
        sweep: the numbers K of neighbours of the sweeps.
        neighbours: number of neighbours in the record of a keyword.
        bootstrap: resamples of the images; 0 for no intervals.
        seed: seed of all draws.
    """

    sweep: tuple[int, ...] = SWEEP
    neighbours: int = NEIGHBOURS
    bootstrap: int = 1000
    seed: int = 0


def score(
    data: KeywordEvalData, words: Sequence[Sequence[Word]] | None = None, settings: Settings = Settings()
) -> dict[str, Any]:
    """Return the scores of the module, and the sections "gold_cosine", "distinct", "words" and "flaws".

    Args:
        data: the result of :func:`find_neighbours`.
        words: the words of every caption; None for no section "words".
        settings: numbers of neighbours, resamples and seed.
    Returns:
        "clean", "reference", "content_top1": hit rates.
        "frequency_prior", "shuffled_speech", "ci95": the same keys for the controls and the intervals.
        "n_utterances", "n_keywords": by score, the number of utterances and keywords that count.
        "repetition": of the subwords that keywords are quantised to (:func:`speechclip.eval.words.repetition`).
        "sweep", "reference_sweep": {"all", "content"} of hit rates for each K. A K is left out if the table or the
            training captions have too few subwords.
        "gold_cosine": {"all", "content"}, the mean cosine of z_k to the nearest subword of the caption.
        "distinct", "words", "flaws": see :mod:`speechclip.eval.words` and :mod:`speechclip.eval.flaws`.
    """
    report: dict[str, Any] = _score_sections(data)
    report["repetition"] = repetition(data.nearest[ALL].rows[:, 0], data.index)
    sets = {name: gold for name, (_, gold, _) in named_scores(data).items()}
    some = data.index.counts > 0
    report["n_utterances"] = {name: int(((gold.size > 0) & some).sum()) for name, gold in sets.items()}
    report["n_keywords"] = {name: _counted(data.index, gold) for name, gold in sets.items()}
    ids, kinds = data.subwords.ids, (ALL, CONTENT)
    report["sweep"] = {
        kind: _sweep(data, kind, ids[data.nearest[kind].rows], data.gold, settings.sweep) for kind in kinds
    }
    report["reference_sweep"] = {
        kind: _sweep(data, kind, ids[data.quantised_any[kind]], data.with_special, settings.sweep) for kind in kinds
    }
    report["gold_cosine"] = {kind: _gold_cosine(data, kind) for kind in (ALL, CONTENT)}
    report["distinct"] = {kind: distinct_report(data, kind, settings.seed) for kind in (ALL, CONTENT)}
    if words is not None:
        report["words"] = {kind: word_report(data, kind, words) for kind in (ALL, CONTENT)}
    report["flaws"] = flaw_report(data)
    return report


def find_neighbours(
    z: ArrayLike,
    mask: ArrayLike,
    subwords: Subwords,
    gold: Sequence[Collection[int]],
    gold_reference: Sequence[Collection[int]],
    train_counts: Mapping[int, int],
    images: ArrayLike | None = None,
    settings: Settings = Settings(),
) -> KeywordEvalData:
    """Find the neighbours of all keywords in one pass over the table.

    Args:
        z: keyword vectors, [U, K, D].
        mask: whether the utterance has that keyword, [U, K].
        subwords: the table of subword embeddings.
        gold: the subwords of every caption.
        gold_reference: the ids of every padded token sequence, special tokens included.
        train_counts: by subword id, the number of TRAINING utterances that have it.
        images: the image of every utterance, [U], for intervals; None: each utterance has its own.
        settings: numbers of neighbours, resamples and seed.
    Raises:
        ValueError: the arrays do not fit or are not finite, no utterance has a keyword, or the table is too small.
    """
    vectors, present = _fitting(z, mask, len(gold), len(gold_reference))
    index = KeywordIndex.of(present)
    of_image = np.arange(len(gold)) if images is None else np.asarray(images)
    shuffled_index = other_images(of_image, settings.seed)
    plain = IdSets.of(gold).without(subwords.special_ids)
    sets = {ALL: plain, CONTENT: plain.without(subwords.stop_ids)}
    rows = {kind: sets[kind].rows(subwords) for kind in sets}
    captions = {"": index.owner} | ({} if shuffled_index is None else {"shuffled ": shuffled_index[index.owner]})
    no_content = subwords.special_ids | subwords.stop_ids
    for least, exclude in ((NEIGHBOURS, subwords.special_ids), (1, no_content)):
        most_frequent(train_counts, subwords, least, exclude)  # raises if the named scores have too few
    every = np.zeros(len(subwords.ids), dtype=bool)
    stop, sweep = subwords.rows(subwords.stop_ids), (*settings.sweep, 1)
    wanted = [
        (NEIGHBOURS, every),
        (_depth((*sweep, settings.neighbours, NEIGHBOURS), subwords.special), subwords.special),
        (_depth(sweep, subwords.no_content), subwords.no_content),
    ]
    own = {how + kind: (rows[kind], which) for kind in sets for how, which in captions.items()}
    found = search(finite(vectors[present], "z"), subwords.embeddings, wanted, own)
    used, place = np.unique(found.nearest[1].rows[:, 0], return_inverse=True)  # keywords are quantised to the nearest
    wanted = [
        (NEIGHBOURS, subwords.special), (_depth((*sweep, NEIGHBOURS), every), every), (_depth(sweep, stop), stop)
    ]  # fmt: skip
    table = subwords.embeddings
    quantised, *around = (near.rows[place.reshape(-1)] for near in search(table[used], table, wanted).nearest)
    padded = IdSets.of(gold_reference)
    bootstrap = Bootstrap(of_image, settings.bootstrap, settings.seed) if settings.bootstrap else None
    frequent = {
        ALL: by_frequency(train_counts, subwords, subwords.special_ids),
        CONTENT: by_frequency(train_counts, subwords, no_content),
    }
    return KeywordEvalData(
        index=index, rates=HitRates(index, bootstrap), subwords=subwords, counts=train_counts, gold=sets,
        gold_rows=rows, with_special={ALL: padded, CONTENT: padded.without(subwords.stop_ids)},
        shuffled_index=shuffled_index, frequent=frequent, nearest={ALL: found.nearest[1], CONTENT: found.nearest[2]},
        nearest_any=found.nearest[0], best=found.best, quantised_any=dict(zip((ALL, CONTENT), around, strict=True)),
        quantised=quantised,
    )  # fmt: skip


def _fitting(z: ArrayLike, mask: ArrayLike, gold: int, reference: int) -> tuple[NDArray[Any], Bools]:
    """Return z and mask as arrays.

    Raises:
        ValueError: they do not fit each other, or the number of gold sets.
    """
    vectors, present = np.asarray(z), np.asarray(mask, dtype=bool)
    if reference != gold:
        raise ValueError(f"{gold} gold sets and {reference} reference gold sets do not fit")
    if vectors.ndim != 3 or present.shape != vectors.shape[:2] or gold != len(present):
        raise ValueError(f"z {vectors.shape}, mask {present.shape} and {gold} gold sets do not fit")
    return vectors, present


def _depth(wanted: Sequence[int], excluded: Bools) -> int:
    """Return the largest wanted K that the table has subwords for; the last K if it has too few for all."""
    return max([k for k in wanted if k <= int((~excluded).sum())], default=wanted[-1])


def _counted(index: KeywordIndex, gold: IdSets) -> dict[str, int]:
    """Count the keywords of utterances whose gold set is not empty, by keyword number and in total."""
    numbers = np.bincount(index.number[gold.size[index.owner] > 0], minlength=index.shape[1])
    return {f"kw{at + 1}": int(n) for at, n in enumerate(numbers) if n} | {"avg": int(numbers.sum())}


def named_scores(data: KeywordEvalData) -> dict[str, tuple[Ints, IdSets, list[int]]]:
    """Return by score: ids of the neighbours that count, [N, k], the gold sets, and k ids of the frequency prior."""
    ids, frequent = data.subwords.ids, data.frequent
    around = data.quantised_any[ALL][:, :NEIGHBOURS]
    return {
        "clean": (ids[data.nearest[ALL].rows[:, :NEIGHBOURS]], data.gold[ALL], frequent[ALL][:NEIGHBOURS]),
        "reference": (ids[around], data.with_special[ALL], frequent[ALL][:NEIGHBOURS]),
        "content_top1": (ids[data.nearest[CONTENT].rows[:, :1]], data.gold[CONTENT], frequent[CONTENT][:1]),
    }


def _score_sections(data: KeywordEvalData) -> dict[str, Any]:
    """Return the named scores, and the same keys in "frequency_prior", "shuffled_speech" and "ci95"."""
    report: dict[str, Any] = {}
    extra: dict[str, dict[str, Any]] = {"frequency_prior": {}, "shuffled_speech": {}, "ci95": {}}
    for name, (ids, gold, prior) in named_scores(data).items():
        row = data.hit_row(ids, gold, prior)
        for key, scores in extra.items():
            if key in row:
                scores[name] = row.pop(key)
        report[name] = row
    return report | {key: scores for key, scores in extra.items() if scores}


def _sweep(
    data: KeywordEvalData, kind: str, near: Ints, sets: Mapping[str, IdSets], sweep: Iterable[int]
) -> dict[str, Any]:
    """Return the hit rates for each K, by K as a string. near: ids of the neighbours, best first, [N, k]."""
    gold, prior, owner = sets[kind], data.frequent[kind], data.index.owner
    other = None if data.shuffled_index is None else data.shuffled_index[owner]
    hits, shuffled = (
        None if caption is None else np.logical_or.accumulate(gold.contain(caption[:, None], near), axis=1)
        for caption in (owner, other)
    )
    assert hits is not None
    return {
        str(k): data.hit_row(
            near[:, :k], gold, prior[:k], hits[:, k - 1], None if shuffled is None else shuffled[:, k - 1]
        )
        for k in sorted(set(sweep)) if k <= min(near.shape[1], len(prior))
    }  # fmt: skip


def _gold_cosine(data: KeywordEvalData, kind: str) -> dict[str, Any]:
    """Return the mean cosine to the nearest subword of the caption. The prior is the most frequent subword."""
    own = data.best[kind][1]
    row = data.rates.scored(np.nan_to_num(own), ~np.isnan(own), scale=1.0)
    frequent = np.flatnonzero(data.subwords.ids == data.frequent[kind][0])[0]
    unit = unit_rows(data.subwords.embeddings)
    prior = best_of((unit @ unit[frequent])[None], data.gold_rows[kind])[1][data.index.owner]
    row["frequency_prior"] = data.rates.row(np.nan_to_num(prior), ~np.isnan(prior), scale=1.0)
    if data.shuffled_index is not None:
        other = data.best[f"shuffled {kind}"][1]
        row["shuffled_speech"] = data.rates.row(np.nan_to_num(other), ~np.isnan(other), scale=1.0)
    return row
