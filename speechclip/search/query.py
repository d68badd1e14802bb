"""A spoken query to an index: the images it finds, and its keywords with their times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.devices import pick_device
from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.audio import check_not_silent, load_audio, num_samples
from speechclip.model.encoders.tokenizers import WORD_END, WORD_START
from speechclip.search.index import INFO, ImageIndex

if TYPE_CHECKING:
    from speechclip.api import Keyword, SpeechCLIP

MIN_SECONDS = 0.2  # of a query: no word is shorter
DEMO_MODEL = "mini"  # the model of the demo index, see SpeechCLIP.from_pretrained


@dataclass(frozen=True)
class Hit:
    """An image that a query found.

    Attributes:
        rank: rank, from 1.
        id: id of the image.
        cosine: cosine of the query and the image.
        row: row of the index.
        file: file of the image; "" if it is not known.
    """

    rank: int
    id: str
    cosine: float
    row: int
    file: str


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        hits: the images, best first.
        keywords: the keywords; None if the model finds no keywords.
        seconds: length of the query.
        encode_ms: time to encode the speech, in milliseconds.
        search_ms: time to search the index, in milliseconds.
    """

    hits: tuple[Hit, ...]
    keywords: tuple[Keyword, ...] | None
    seconds: float
    encode_ms: float
    search_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Return the answer for JSON. Subwords have no marks of the start or end of a word."""
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


def read_query(recording: str | Path, max_seconds: float = 60.0) -> NDArray[np.float32]:
    """Read a recorded query.

    Args:
        recording: an audio file.
        max_seconds: a longer recording is refused before it is decoded.

    Returns:
        The waveform [n], 16 kHz.

    Raises:
        UserError: the audio is missing, damaged, too short, too long, silent or not finite.
    """
    seconds = num_samples(recording) / SAMPLE_RATE
    if seconds > max_seconds:
        raise UserError(f"{recording}: {seconds:.1f} s long. A query has at most {max_seconds:g} s.")
    if 0 < seconds < MIN_SECONDS:
        raise UserError(f"{recording}: {seconds:.3f} s long. A query has at least {MIN_SECONDS:g} s.")
    wave = load_audio(recording)
    check_not_silent(recording, wave)
    return wave


def ask(
    model: SpeechCLIP, index: ImageIndex, recording: str | Path | NDArray[np.float32], *, top_k: int = 10,
    branch: str | None = None, neighbours: int = 3, max_seconds: float = 60.0, exact: bool = False,
) -> Answer:  # fmt: skip
    """Search with a recorded query.

    Args:
        model: the model.
        index: an index of the model's joint space.
        recording: an audio file, or a waveform of :func:`read_query`.
        top_k: number of images.
        branch: see :meth:`SpeechCLIP.encode_speech`.
        neighbours: number of subwords per keyword.
        max_seconds: see :func:`read_query`.
        exact: compare with all vectors.

    Raises:
        UserError: see :func:`read_query`; or the model does not have the branch.
    """
    wave = recording if isinstance(recording, np.ndarray) else read_query(recording, max_seconds)
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
    """Return a subword without the mark of a word's start (sentencepiece) or end (CLIP's BPE)."""
    return subword.removesuffix(WORD_END).removeprefix(WORD_START) or subword


def format_answer(query: str, answer: Answer) -> str:
    """Return an answer as lines of text: the images, then the keywords with their times."""
    lines = [f"{query} ({answer.seconds:.2f} s)", "rank  cosine  image"]
    lines += [f"{hit.rank:4}  {hit.cosine:6.3f}  {hit.id}" for hit in answer.hits]
    if answer.keywords is None:
        return "\n".join([*lines, "this model finds no keywords"])
    lines.append("keywords")
    for word in answer.keywords:
        near = ", ".join(f"{plain_subword(name)} {cosine:.2f}" for name, cosine in zip(word.subwords, word.cosines))
        lines.append(f"  {word.span[0]:5.2f} - {word.span[1]:5.2f} s  {near}")
    return "\n".join(lines)


def load_for_search(path: str, device: str = "auto") -> SpeechCLIP:
    """Load a model: a checkpoint folder, a published file, a name or an id on the hub. See :func:`pick_device`."""
    from speechclip.api import SpeechCLIP

    return SpeechCLIP.from_pretrained(path, device=pick_device(device))


def open_with_model(
    index_path: str | Path, model_path: str = "", device: str = "auto", branch: str | None = None
) -> tuple[ImageIndex, SpeechCLIP]:
    """Open an index and load its model.

    Args:
        index_path: folder of the index.
        model_path: the model; "" for the one that the index names.
        device: see :func:`pick_device`.
        branch: the branch that will encode queries; None for the model's default.

    Raises:
        UserError: the index cannot be read, the model is missing or has another joint space, or it does not have the
            branch.
    """
    index = ImageIndex.open(index_path)
    where = model_path or index.model_path()
    model = load_for_search(where, device)
    index.check_model(model, where)
    if branch is not None and branch not in model.branches:
        raise UserError(f"--branch {branch}: {where} has only the branch {' and '.join(model.branches)}")
    return index, model


def demo_folder() -> Path:
    """Return the folder of the demo that the package ships: ``index`` and ``queries/*.flac``.

    Raises:
        MissingFileError: it is not installed.
    """
    from speechclip.checkpoint.pretrained import mini_folder

    folder = Path(mini_folder()).parent / "demo"
    if not (folder / "index" / INFO).is_file():
        raise MissingFileError(folder / "index" / INFO)
    return folder
