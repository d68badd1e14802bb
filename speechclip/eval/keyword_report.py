"""All keyword scores of a split, as arrays and dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.config import EvalConfig
from speechclip.data.alignments import AlignedWord
from speechclip.data.dataset import Split
from speechclip.eval.bootstrap import Bootstrap
from speechclip.eval.contributions import contributions
from speechclip.eval.gold import other_images
from speechclip.eval.keyword_data import CONTENT, KeywordEvalData
from speechclip.eval.keywords import Settings, find_neighbours, score
from speechclip.eval.overlap import SpokenWords, find_overlaps, overlap_report
from speechclip.eval.records import keyword_records
from speechclip.eval.segmentation import segmentation_report
from speechclip.eval.setup import KeywordGold
from speechclip.model.inference import KeywordTable

SEED = 0  # of resamples and shuffled captions; the same for every run, so that runs can be compared
Alignments = Mapping[str, Sequence[AlignedWord]]


@dataclass(frozen=True)
class KeywordScores:
    """The scores of a split.

    Attributes:
        report: the content of keywords.json without "provenance".
        records: one dictionary for each keyword, see :func:`speechclip.eval.records.keyword_records`.
        contributions: by score, what each utterance adds to it, see
            :func:`speechclip.eval.contributions.contributions`.
    """

    report: dict[str, Any]
    records: Iterator[dict[str, Any]]
    contributions: dict[str, NDArray[np.floating[Any]]]


def score_keywords(
    keywords: KeywordTable, gold: KeywordGold, split: Split, captions: Sequence[str], alignments: Alignments | None,
    settings: EvalConfig,
) -> KeywordScores:  # fmt: skip
    """Score the keywords of a split.

    Args:
        keywords: the keywords of its U utterances.
        gold: the gold sets of the captions.
        split: ids and images of the utterances.
        captions: the caption of each utterance, for the records.
        alignments: the spoken words by utterance; None if the data has no alignments.
        settings: the settings of evaluation.
    """
    options = Settings(tuple(settings.sweep), settings.neighbours, settings.bootstrap, SEED)
    data = find_neighbours(
        keywords.vectors, keywords.mask, gold.subwords, gold.content, gold.with_special, gold.train_counts,
        split.utterance_image, options,
    )  # fmt: skip
    report = score(data, gold.words, options)
    spans = keywords.spans(settings.span_mass)
    overlap = None
    if alignments is not None:
        kind = "attention spans" if keywords.segments is None else "segments"
        report["segmentation"] = {"of": kind, **_segmentation(spans, split, alignments, settings)}
        section, overlap = _overlap(data, spans, keywords.seconds, split.ids, alignments, gold, kind)
        report["overlap"] = section
    report["settings"] = {
        "span_mass": settings.span_mass, "boundary_tolerance": settings.boundary_tolerance, "sweep": settings.sweep,
        "neighbours": settings.neighbours, "bootstrap": settings.bootstrap, "seed": SEED, "images": len(split.images),
    }  # fmt: skip
    records = keyword_records(
        split.ids, captions, data, np.concatenate(spans), gold.strings, gold.words, alignments, overlap,
        settings.neighbours,
    )  # fmt: skip
    return KeywordScores(report, records, contributions(data, gold.words))


def _segmentation(
    spans: Sequence[NDArray[Any]], split: Split, alignments: Alignments, settings: EvalConfig
) -> dict[str, Any]:
    """Score the keyword times of the aligned utterances as word boundaries."""
    rows = [row for row, identity in enumerate(split.ids) if identity in alignments]
    images = split.utterance_image[rows]
    shuffled_index = other_images(images, SEED)
    return segmentation_report(
        [spans[row].tolist() for row in rows],
        [[(word.start, word.end) for word in alignments[split.ids[row]]] for row in rows],
        settings.boundary_tolerance,
        None if shuffled_index is None else shuffled_index.tolist(),
        Bootstrap(images, settings.bootstrap, SEED) if settings.bootstrap else None,
    )


def _overlap(
    data: KeywordEvalData, spans: Sequence[NDArray[Any]], seconds: NDArray[Any], ids: Sequence[str],
    alignments: Alignments, gold: KeywordGold, kind: str,
) -> tuple[dict[str, Any], list[bool | None]]:  # fmt: skip
    """Return the section "overlap", and for each keyword whether it overlaps its word; None if it names no word."""
    texts = {word.text for words in alignments.values() for word in words}
    subwords = {text: gold.encode(text) for text in texts}
    spoken = SpokenWords.of([alignments.get(name, []) for name in ids], subwords, int(gold.subwords.ids.max()))
    flat = np.concatenate(spans)
    section = overlap_report(data, flat, spoken, seconds, kind)
    named = data.subwords.ids[data.nearest[CONTENT].rows[:, 0]]
    each = find_overlaps(flat, data.index.owner, named, spoken, seconds)
    return section, [bool(hit) if name else None for hit, name in zip(each.hit, each.named, strict=True)]
