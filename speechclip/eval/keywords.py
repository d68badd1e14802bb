"""Keyword discovery: which subwords of the text encoder the keywords of a head come to lie next to.

A keyword is the vector z_k before quantisation. Scores are in percent of the utterances that have a k-th keyword and a
gold set that is not empty; "avg" in percent of all keywords of utterances with such a gold set.

clean         one of the 5 subwords nearest to z_k, special tokens excluded, is a subword of the caption
reference     as the published code counts: one of the 5 nearest rows, special ones included, of the QUANTISED keyword
              (the row nearest to z_k) is in the padded token sequence, start, end and padding included
content_top1  the nearest content subword is a content subword of the caption: stop words count on neither side

"sweep" counts as clean does with any number K of neighbours, "reference_sweep" as reference does, each with stop words
("all") and with none on either side ("content").

Beside each stands what knows nothing of the speech. "frequency_prior": the most frequent subwords of the training
captions in the place of every keyword's neighbours. "shuffled_speech": the keywords of an utterance against the caption
of one of another image, by a seeded permutation; it is left out where half of the utterances or more are of one image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.eval.bootstrap import Bootstrap
from speechclip.eval.case import ALL, CONTENT, KeywordEvalData
from speechclip.eval.flaws import flaw_report
from speechclip.eval.gold import IdSets, Word, by_frequency, most_frequent, other_images
from speechclip.eval.neighbours import Subwords, best_of, finite, search, unit_rows
from speechclip.eval.rates import HitRates, KeywordIndex
from speechclip.eval.words import distinct_report, repetition, word_report

NEIGHBOURS = 5
SWEEP = (1, 3, 5, 10, 20)

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Settings:
    """sweep: the K of the hit rates. neighbours: how many are kept of each keyword for its record.

    bootstrap: resamples of the images, 0 for no intervals. seed: of all draws.
    """

    sweep: tuple[int, ...] = SWEEP
    neighbours: int = NEIGHBOURS
    bootstrap: int = 1000
    seed: int = 0


def score(
    case: KeywordEvalData, words: Sequence[Sequence[Word]] | None = None, settings: Settings = Settings()
) -> dict[str, Any]:
    """The scores of the module, and the sections "gold_cosine", "distinct", "words" and "flaws".

    Args:
        case: what :func:`find` returns. words: of every caption; without them there is no section "words".
    Returns:
        "clean", "reference", "content_top1", each again in "frequency_prior", "shuffled_speech" and "ci95"; for each of
        them "n_utterances" counted and "n_keywords", how many keywords each of its numbers is over;
        "repetition" (see `words.repetition`) of the subwords that keywords are quantised to; "sweep" and
        "reference_sweep", {"all", "content"} of hit rates for each K; "gold_cosine" {"all", "content"}, the mean cosine
        of z_k to the nearest subword of the caption; "distinct", "words" and "flaws" as `words` and `flaws` tell. A K
        that the table or the training captions have too few subwords for is left out of the sweeps.
    """
    report: dict[str, Any] = _named_scores(case)
    report["repetition"] = repetition(case.near[ALL].rows[:, 0], case.places)
    sets = {name: gold for name, (_, gold, _) in named(case).items()}
    some = case.places.counts > 0
    report["n_utterances"] = {name: int(((gold.size > 0) & some).sum()) for name, gold in sets.items()}
    report["n_keywords"] = {name: _counted(case.places, gold) for name, gold in sets.items()}
    ids, kinds = case.subwords.ids, (ALL, CONTENT)
    report["sweep"] = {kind: _sweep(case, kind, ids[case.near[kind].rows], case.gold, settings.sweep) for kind in kinds}
    report["reference_sweep"] = {
        kind: _sweep(case, kind, ids[case.quantised_any[kind]], case.with_special, settings.sweep) for kind in kinds
    }
    report["gold_cosine"] = {kind: _gold_cosine(case, kind) for kind in (ALL, CONTENT)}
    report["distinct"] = {kind: distinct_report(case, kind, settings.seed) for kind in (ALL, CONTENT)}
    if words is not None:
        report["words"] = {kind: word_report(case, kind, words) for kind in (ALL, CONTENT)}
    report["flaws"] = flaw_report(case)
    return report


def find(
    z: ArrayLike,
    mask: ArrayLike,
    subwords: Subwords,
    gold: Sequence[Collection[int]],
    gold_reference: Sequence[Collection[int]],
    train_counts: Mapping[int, int],
    images: ArrayLike | None = None,
    settings: Settings = Settings(),
) -> KeywordEvalData:
    """Look up, in one pass over the table, all that scores and records are made of.

    Args:
        z: [U, K, D]. mask: [U, K], true where the utterance has that keyword.
        gold: the subwords of every caption. gold_reference: the ids of its padded token sequence with the special ones.
        train_counts: in how many TRAINING utterances a subword occurs.
        images: [U], the image of every utterance, over which intervals go; None: each its own.
    Raises:
        ValueError: arrays that do not fit or are not finite, no keyword, fewer subwords than the scores need.
    """
    vectors, present = _fitting(z, mask, len(gold), len(gold_reference))
    places = KeywordIndex.of(present)
    of_image = np.arange(len(gold)) if images is None else np.asarray(images)
    shuffled_index = other_images(of_image, settings.seed)
    plain = IdSets.of(gold).without(subwords.special_ids)
    sets = {ALL: plain, CONTENT: plain.without(subwords.stop_ids)}
    rows = {kind: sets[kind].rows(subwords) for kind in sets}
    asked = {"": places.owner} | ({} if shuffled_index is None else {"shuffled ": shuffled_index[places.owner]})
    no_content = subwords.special_ids | subwords.stop_ids
    for least, exclude in ((NEIGHBOURS, subwords.special_ids), (1, no_content)):
        most_frequent(train_counts, subwords, least, exclude)  # too few for the named scores is an error
    every = np.zeros(len(subwords.ids), dtype=bool)
    stop, sweep = subwords.rows(subwords.stop_ids), (*settings.sweep, 1)
    wanted = [
        (NEIGHBOURS, every),
        (_depth((*sweep, settings.neighbours, NEIGHBOURS), subwords.special), subwords.special),
        (_depth(sweep, subwords.no_content), subwords.no_content),
    ]
    own = {how + kind: (rows[kind], which) for kind in sets for how, which in asked.items()}
    found = search(finite(vectors[present], "z"), subwords.embeddings, wanted, own)
    used, place = np.unique(found.near[1].rows[:, 0], return_inverse=True)  # keywords are quantised to the nearest
    wanted = [
        (NEIGHBOURS, subwords.special), (_depth((*sweep, NEIGHBOURS), every), every), (_depth(sweep, stop), stop)
    ]  # fmt: skip
    table = subwords.embeddings
    quantised, *around = (near.rows[place.reshape(-1)] for near in search(table[used], table, wanted).near)
    padded = IdSets.of(gold_reference)
    bootstrap = Bootstrap(of_image, settings.bootstrap, settings.seed) if settings.bootstrap else None
    frequent = {
        ALL: by_frequency(train_counts, subwords, subwords.special_ids),
        CONTENT: by_frequency(train_counts, subwords, no_content),
    }
    return KeywordEvalData(
        places=places, rates=HitRates(places, bootstrap), subwords=subwords, counts=train_counts, gold=sets,
        gold_rows=rows, with_special={ALL: padded, CONTENT: padded.without(subwords.stop_ids)}, shuffled_index=shuffled_index,
        frequent=frequent, near={ALL: found.near[1], CONTENT: found.near[2]}, near_any=found.near[0], best=found.best,
        quantised_any=dict(zip((ALL, CONTENT), around, strict=True)), quantised=quantised,
    )  # fmt: skip


def _fitting(z: ArrayLike, mask: ArrayLike, gold: int, reference: int) -> tuple[NDArray[Any], Bools]:
    """z and mask as arrays. Raises ValueError where they or the numbers of gold sets do not fit."""
    vectors, present = np.asarray(z), np.asarray(mask, dtype=bool)
    if reference != gold:
        raise ValueError(f"{gold} gold sets and {reference} reference gold sets do not fit")
    if vectors.ndim != 3 or present.shape != vectors.shape[:2] or gold != len(present):
        raise ValueError(f"z {vectors.shape}, mask {present.shape} and {gold} gold sets do not fit")
    return vectors, present


def _depth(wanted: Sequence[int], excluded: Bools) -> int:
    """The largest wanted K that the table has subwords for; where there is none, the last one."""
    return max([k for k in wanted if k <= int((~excluded).sum())], default=wanted[-1])


def _counted(places: KeywordIndex, gold: IdSets) -> dict[str, int]:
    """How many keywords a row of scores is over, by its names: those of utterances whose set is not empty."""
    numbers = np.bincount(places.number[gold.size[places.owner] > 0], minlength=places.shape[1])
    return {f"kw{at + 1}": int(n) for at, n in enumerate(numbers) if n} | {"avg": int(numbers.sum())}


def named(case: KeywordEvalData) -> dict[str, tuple[Ints, IdSets, list[int]]]:
    """By the name of a score: ids of the neighbours that count, [N, k], the gold sets, and the prior's k ids."""
    ids, frequent = case.subwords.ids, case.frequent
    around = case.quantised_any[ALL][:, :NEIGHBOURS]
    return {
        "clean": (ids[case.near[ALL].rows[:, :NEIGHBOURS]], case.gold[ALL], frequent[ALL][:NEIGHBOURS]),
        "reference": (ids[around], case.with_special[ALL], frequent[ALL][:NEIGHBOURS]),
        "content_top1": (ids[case.near[CONTENT].rows[:, :1]], case.gold[CONTENT], frequent[CONTENT][:1]),
    }


def _named_scores(case: KeywordEvalData) -> dict[str, Any]:
    """The scores of the module, and each again in "frequency_prior", "shuffled_speech" and "ci95"."""
    report: dict[str, Any] = {}
    beside: dict[str, dict[str, Any]] = {"frequency_prior": {}, "shuffled_speech": {}, "ci95": {}}
    for name, (ids, gold, prior) in named(case).items():
        row = case.hit_row(ids, gold, prior)
        for key, scores in beside.items():
            if key in row:
                scores[name] = row.pop(key)
        report[name] = row
    return report | {key: scores for key, scores in beside.items() if scores}


def _sweep(
    case: KeywordEvalData, kind: str, near: Ints, sets: Mapping[str, IdSets], sweep: Iterable[int]
) -> dict[str, Any]:
    """The row of each K, its key as a decimal string. near: [N, k] ids of neighbours, best first."""
    gold, prior, owner = sets[kind], case.frequent[kind], case.places.owner
    other = None if case.shuffled_index is None else case.shuffled_index[owner]
    hits, shuffled = (
        None if asked is None else np.logical_or.accumulate(gold.contain(asked[:, None], near), axis=1)
        for asked in (owner, other)
    )
    assert hits is not None
    return {
        str(k): case.hit_row(
            near[:, :k], gold, prior[:k], hits[:, k - 1], None if shuffled is None else shuffled[:, k - 1]
        )
        for k in sorted(set(sweep)) if k <= min(near.shape[1], len(prior))
    }  # fmt: skip


def _gold_cosine(case: KeywordEvalData, kind: str) -> dict[str, Any]:
    """Mean cosine to the nearest subword of the caption. The prior's keyword is the most frequent subword itself."""
    own = case.best[kind][1]
    row = case.rates.scored(np.nan_to_num(own), ~np.isnan(own), scale=1.0)
    frequent = np.flatnonzero(case.subwords.ids == case.frequent[kind][0])[0]
    unit = unit_rows(case.subwords.embeddings)
    prior = best_of((unit @ unit[frequent])[None], case.gold_rows[kind])[1][case.places.owner]
    row["frequency_prior"] = case.rates.row(np.nan_to_num(prior), ~np.isnan(prior), scale=1.0)
    if case.shuffled_index is not None:
        other = case.best[f"shuffled {kind}"][1]
        row["shuffled_speech"] = case.rates.row(np.nan_to_num(other), ~np.isnan(other), scale=1.0)
    return row
