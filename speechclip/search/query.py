"""A spoken query to an index: the images it finds, the keywords that were heard and when."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.devices import pick_device
from speechclip.common.errors import UserError
from speechclip.data.audio import check_not_silent, load_audio, num_samples
from speechclip.model.encoders.tokenizers import WORD_END, WORD_START
from speechclip.search.index import ImageIndex

if TYPE_CHECKING:
    from speechclip.api import Keyword, SpeechCLIP


@dataclass(frozen=True)
class Hit:
    """An image that was found: its rank from 1, id, cosine to the query, row of the index, and file ("" if unknown)."""

    rank: int
    id: str
    cosine: float
    row: int
    file: str


@dataclass(frozen=True)
class Answer:
    """What a query found.

    seconds: its length. keywords: None where the head has none. encode_ms, search_ms: time that speech and search took.
    """

    hits: tuple[Hit, ...]
    keywords: tuple[Keyword, ...] | None
    seconds: float
    encode_ms: float
    search_ms: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; subwords without the vocabulary's marks of where a word begins or ends."""
        words = None
        if self.keywords is not None:
            words = [
                {
                    "start": round(word.span[0], 3),
                    "end": round(word.span[1], 3),
                    "subwords": [plain_subword(subword) for subword in word.subwords],
                    "cosines": [round(cosine, 4) for cosine in word.cosines],
                }
                for word in self.keywords
            ]
        return {
            "seconds": round(self.seconds, 3),
            "results": [
                {"rank": hit.rank, "id": hit.id, "cosine": round(hit.cosine, 4), "file": hit.file} for hit in self.hits
            ],
            "keywords": words,
            "encode_ms": round(self.encode_ms, 1),
            "search_ms": round(self.search_ms, 1),
        }


def ask(
    model: SpeechCLIP, index: ImageIndex, recording: str | Path, *, top_k: int = 10, branch: str | None = None,
    neighbours: int = 3, max_seconds: float = 60.0, exact: bool = False,
) -> Answer:  # fmt: skip
    """Search with a recorded query.

    Args:
        branch: see :meth:`SpeechCLIP.encode_speech`. neighbours: subwords named for each keyword.
        max_seconds: a longer recording is refused before it is decoded.
        exact: compare with all vectors.
    Raises:
        UserError: audio that is missing, damaged, too long, silent throughout, or not finite.
    """
    seconds = num_samples(recording) / SAMPLE_RATE
    if seconds > max_seconds:
        raise UserError(f"{recording}: {seconds:.1f} s long, a query may have {max_seconds:g} s")
    wave = load_audio(recording)
    check_not_silent(recording, wave)
    started = time.perf_counter()
    embedding, keywords = model.encode_with_keywords(wave, branch, neighbours)
    query = embedding.float().cpu().numpy()[None]
    encoded = time.perf_counter()
    rows, cosines = index.search(query, top_k, exact)
    found = time.perf_counter()
    hits = tuple(
        Hit(rank, index.ids[row], float(cosine), int(row), index.files[row] if index.files else "")
        for rank, (row, cosine) in enumerate(zip(rows[0].tolist(), cosines[0].tolist()), start=1)
    )
    return Answer(
        hits,
        None if keywords is None else tuple(keywords),
        len(wave) / SAMPLE_RATE,
        1000 * (encoded - started),
        1000 * (found - encoded),
    )


def plain_subword(subword: str) -> str:
    """A subword without the mark of where a word begins (sentencepiece) or ends (CLIP's BPE)."""
    return subword.removesuffix(WORD_END).removeprefix(WORD_START) or subword


def format_answer(query: str, answer: Answer) -> str:
    """An answer as lines of text: the images, then the keywords with their times."""
    lines = [f"{query} ({answer.seconds:.2f} s)", "rank  cosine  image"]
    lines += [f"{hit.rank:4}  {hit.cosine:6.3f}  {hit.id}" for hit in answer.hits]
    if answer.keywords is None:
        return "\n".join([*lines, "this head hears no keywords"])
    lines.append("keywords heard")
    for word in answer.keywords:
        near = ", ".join(f"{plain_subword(name)} {cosine:.2f}" for name, cosine in zip(word.subwords, word.cosines))
        lines.append(f"  {word.span[0]:5.2f} - {word.span[1]:5.2f} s  {near}")
    return "\n".join(lines)


def load_for_search(path: str, device: str = "auto") -> SpeechCLIP:
    """A model by checkpoint folder, published file or id on the hub. device: see :func:`pick_device`."""
    from speechclip.api import SpeechCLIP

    return SpeechCLIP.from_pretrained(path, device=pick_device(device))


def open_with_model(index_path: str, model_path: str, device: str = "auto") -> tuple[ImageIndex, SpeechCLIP]:
    """An index and its model. model_path: empty for where the index remembers it.

    Raises UserError for an index that cannot be read and a model that is gone or of another joint space.
    """
    index = ImageIndex.open(index_path)
    where = model_path or index.model_path()
    model = load_for_search(where, device)
    index.check_model(model, where)
    return index, model
