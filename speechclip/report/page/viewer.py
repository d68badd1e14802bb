"""The data of the page's script: utterances with their keywords, images and recordings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.constants import FRAME_SECONDS
from speechclip.eval.ranking import first_hit_ranks
from speechclip.eval.score_files import Record
from speechclip.report.page import media
from speechclip.report.page.eval_split import EvalSplit
from speechclip.report.page.examples import top
from speechclip.report.page.projection import Plane
from speechclip.report.page.recordings import Recordings

FOUND = 4  # images per utterance


@dataclass
class Gallery:
    """Collects the images that a page needs, each once.

    Attributes:
        eval_split: the split.
        images: place in the list of the page by row of the split.
    """

    eval_split: EvalSplit
    images: dict[int, int] = field(default_factory=dict)

    def image(self, row: int) -> int:
        """Return the place of an image in the list of the page, and add it if it is new."""
        return self.images.setdefault(row, len(self.images))

    def pictures(self) -> list[dict[str, str]]:
        """Return id, alternative text (a caption) and thumbnail of every collected image."""
        caption: dict[int, str] = {}
        for row, utterance in zip(self.eval_split.utterance_image.tolist(), self.eval_split.utterances, strict=True):
            caption.setdefault(row, utterance.text)
        ids, files = self.eval_split.image_ids, self.eval_split.image_files
        return [
            {"id": ids[row], "alt": caption.get(row, ids[row]), "uri": media.thumbnail_uri(files[row])}
            for row in self.images
        ]


def listed_rows(count: int, first: Iterable[int], limit: int) -> list[int]:
    """Choose the rows of the utterances to list.

    Args:
        count: number of utterances.
        first: rows that are always listed.
        limit: number of rows to fill up to, with evenly spaced other rows.

    Returns:
        The rows, sorted.
    """
    rows = set(first)
    rest = [row for row in range(count) if row not in rows]
    room = min(len(rest), max(0, limit - len(rows)))
    if room:
        rows |= {rest[int(place)] for place in np.linspace(0, len(rest) - 1, room)}
    return sorted(rows)


def utterance_data(
    gallery: Gallery,
    recordings: Recordings,
    rows: Sequence[int],
    audible: set[int],
    keywords: Mapping[str, list[Record]],
    attention: Mapping[str, NDArray[np.float32]],
    plane: Plane,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the listed utterances, and separately the large data: spectrograms and recordings by place in the list.

    Args:
        gallery: collects the images.
        recordings: those that were read for other pages.
        rows: rows of the utterances to list.
        audible: rows whose recordings the page has.
        keywords: lines of keywords.jsonl by utterance id.
        attention: attention [K, T] by utterance id.
        plane: coordinates of the map.
    """
    eval_split = gallery.eval_split
    ranks = first_hit_ranks(
        eval_split.speech[rows], eval_split.images, eval_split.utterance_image[rows], np.arange(len(eval_split.images))
    )
    found, cosines = top(eval_split.speech[rows], eval_split.images, FOUND)
    listed: list[dict[str, Any]] = []
    heavy: dict[str, Any] = {"spectrograms": [], "audio": {}}
    for place, row in enumerate(rows):
        utterance = eval_split.utterances[row]
        recording = recordings.get(utterance.wav, row in audible)
        entry = {
            "id": utterance.id, "caption": utterance.text, "speaker": utterance.speaker,
            "seconds": recording.seconds, "rank": int(ranks[place]),
            "image": gallery.image(int(eval_split.utterance_image[row])),
            "found": [gallery.image(at) for at in found[place].tolist()],
            "cosines": [round(value, 3) for value in cosines[place].tolist()],
            "envelope": recording.envelope,
            "at": [round(value, 4) for value in plane.speech[row].tolist()],
        }  # fmt: skip
        if utterance.id in eval_split.words:
            entry["words"] = [[w.text, round(w.start, 3), round(w.end, 3)] for w in eval_split.words[utterance.id]]
        if eval_split.transcripts:
            entry["heard"] = [[name, texts[row]] for name, texts in eval_split.transcripts.items()]
        if utterance.id in keywords:
            entry["keywords"] = _keywords(keywords[utterance.id], attention.get(utterance.id))
        listed.append(entry)
        heavy["spectrograms"].append(recording.spectrogram)
        if row in audible:
            heavy["audio"][place] = recording.audio
    return listed, heavy


def map_data(gallery: Gallery, plane: Plane) -> list[list[float]]:
    """Return the coordinates of the collected images, in the order of the list. Call it after all are collected."""
    return [[round(value, 4) for value in plane.images[row].tolist()] for row in gallery.images]


def _keywords(records: Sequence[Record], weights: NDArray[np.float32] | None) -> list[dict[str, Any]]:
    """Return the keywords of an utterance, with their attention relative to its maximum if it was stored."""
    shown = []
    for at, record in enumerate(records):
        near = record["neighbours"]
        keyword: dict[str, Any] = {
            "number": record["keyword"], "span": record["span"],
            "subwords": [neighbour["subword"] for neighbour in near],
            "cosines": [round(neighbour["cosine"], 3) for neighbour in near],
        }  # fmt: skip
        keyword |= {key: record[key] for key in ("hit", "word", "overlap", "spoken") if record.get(key) is not None}
        if record.get("gold"):
            keyword["gold"] = [record["gold"]["subword"], round(record["gold"]["cosine"], 3)]
        if weights is not None and at < len(weights):
            row = weights[at]
            keyword["attention"] = media.packed(row / max(float(row.max()), 1e-9))
            keyword["seconds"] = round(len(row) * FRAME_SECONDS, 3)
        shown.append(keyword)
    return shown
