"""Queries to an index: a recording, typed text, a picture, or an item of the index.

In an index of pictures and recordings, each kind has its own hits with its own ranks. The cosines of a spoken query
with recordings and with pictures cannot be compared: speech is nearer to all speech than to any picture.
"""

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
from speechclip.search.items import RECORDING, Duplicate, recording_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from speechclip.api import Keyword, SpeechCLIP
    from speechclip.data.images import ImageInput

WINDOWS = 4  # windows that are found per hit in a recording, because overlapping ones are one hit
MIN_SECONDS = 0.2  # of a query: no word is shorter
DEMO_MODEL = "mini"  # the model of the demo index, see SpeechCLIP.from_pretrained


@dataclass(frozen=True)
class Hit:
    """An item that a query found.

    Attributes:
        rank: rank among the hits of its kind, from 1.
        id: id of the item.
        cosine: cosine of the query and the item.
        row: row of the index.
        file: file of the item; "" if it is not known.
        kind: "image" or "recording".
        span: start and end in the recording in seconds; None for a picture.
        duplicates: other files with the same content.
    """

    rank: int
    id: str
    cosine: float
    row: int
    file: str
    kind: str
    span: tuple[float, float] | None = None
    duplicates: tuple[Duplicate, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        hits: the pictures, best first, then the recordings, best first.
        keywords: the keywords; None if the query is not speech, or if the model finds no keywords.
        seconds: length of the query; None if it is not speech.
        encode_ms: time to encode the query, in milliseconds.
        search_ms: time to search the index, in milliseconds.
    """

    hits: tuple[Hit, ...]
    keywords: tuple[Keyword, ...] | None
    seconds: float | None
    encode_ms: float
    search_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Return the answer for JSON. Subwords have no marks of the start or end of a word.

        Only the key "file" of a result has a path of this machine.
        """
        return {
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "results": [_describe_hit(hit) for hit in self.hits],
            "keywords": None if self.keywords is None else [describe_keyword(word) for word in self.keywords],
            "encode_ms": round(self.encode_ms, 1),
            "search_ms": round(self.search_ms, 1),
        }


def _describe_hit(hit: Hit) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "id": hit.id,
        "cosine": round(hit.cosine, 4),
        "file": hit.file,
        "kind": hit.kind,
        "span": None if hit.span is None else list(hit.span),
        "duplicates": [other.id for other in hit.duplicates],
    }


def describe_keyword(word: Keyword) -> dict[str, Any]:
    """Return a keyword for JSON. Its subwords have no marks of the start or end of a word."""
    return {
        "start": round(word.span[0], 3),
        "end": round(word.span[1], 3),
        "subwords": [plain_subword(subword) for subword in word.subwords],
        "cosines": [round(cosine, 4) for cosine in word.cosines],
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
    kinds: Collection[str] = (),
) -> Answer:  # fmt: skip
    """Search with a recorded query.

    Args:
        model: the model.
        index: an index of the model's joint space.
        recording: an audio file, or a waveform of :func:`read_query`.
        top_k: number of hits of each kind.
        branch: see :meth:`SpeechCLIP.encode_speech`.
        neighbours: number of subwords per keyword.
        max_seconds: see :func:`read_query`.
        exact: compare with all vectors.
        kinds: the kinds of items that are searched, see `speechclip.search.index.KINDS`; empty for all.

    Raises:
        UserError: see :func:`read_query`; or the model does not have the branch.
    """
    wave = recording if isinstance(recording, np.ndarray) else read_query(recording, max_seconds)
    started = time.perf_counter()
    embedding, keywords = model.encode_with_keywords(wave, branch, neighbours)
    query = embedding.float().cpu().numpy()[None]
    encoded = time.perf_counter()
    hits = find(index, query, top_k=top_k, exact=exact, kinds=kinds)
    return Answer(
        hits,
        None if keywords is None else tuple(keywords),
        len(wave) / SAMPLE_RATE,
        1000 * (encoded - started),
        1000 * (time.perf_counter() - encoded),
    )


def ask_text(
    model: SpeechCLIP, index: ImageIndex, text: str, *, top_k: int = 10, exact: bool = False,
    kinds: Collection[str] = (),
) -> Answer:  # fmt: skip
    """Search with typed text, which CLIP's text tower encodes. The arguments are those of :func:`ask`.

    Raises:
        UserError: the text is empty or not valid Unicode, or the model has no CLIP.
    """
    if not text.strip():
        raise UserError("the text is empty. Type a few words.")
    started = time.perf_counter()
    query = model.encode_text(text).float().cpu().numpy()
    return _answer(index, query, started, top_k, exact, kinds)


def ask_image(
    model: SpeechCLIP, index: ImageIndex, image: ImageInput, *, top_k: int = 10, exact: bool = False,
    kinds: Collection[str] = (),
) -> Answer:  # fmt: skip
    """Search with a picture: a path, the bytes of a file or a PIL image. The arguments are those of :func:`ask`.

    Raises:
        UserError: the picture cannot be read, or the model has no CLIP.
    """
    started = time.perf_counter()
    query = model.encode_image(image).float().cpu().numpy()
    return _answer(index, query, started, top_k, exact, kinds)


def ask_like(
    index: ImageIndex, item: str | int, *, top_k: int = 10, exact: bool = False, kinds: Collection[str] = ()
) -> Answer:
    """Search with an item of the index, which is not a hit itself. No model is needed.

    Args:
        index: the index.
        item: id or row of the item.
        top_k: see :func:`ask`.
        exact: see :func:`ask`.
        kinds: see :func:`ask`.

    Raises:
        UserError: the index has no such item.
    """
    row = index.row(item) if isinstance(item, str) else item
    if not 0 <= row < len(index):
        raise UserError(f"{index.folder}: no item {row}. It has {len(index)}.")
    started = time.perf_counter()
    query = np.asarray(index.vectors[row : row + 1], dtype=np.float32)
    return _answer(index, query, started, top_k, exact, kinds, leave_out=row)


def _answer(
    index: ImageIndex, query: NDArray[np.float32], started: float, top_k: int, exact: bool, kinds: Collection[str],
    leave_out: int | None = None,
) -> Answer:  # fmt: skip
    encoded = time.perf_counter()
    hits = find(index, query, top_k=top_k, exact=exact, kinds=kinds, leave_out=leave_out)
    return Answer(hits, None, None, 1000 * (encoded - started), 1000 * (time.perf_counter() - encoded))


def find(
    index: ImageIndex, query: NDArray[np.float32], *, top_k: int, exact: bool = False, kinds: Collection[str] = (),
    leave_out: int | None = None,
) -> tuple[Hit, ...]:  # fmt: skip
    """Find the items nearest to a query: the pictures, best first, then the recordings, best first.

    Of overlapping windows of a recording, only the best one is a hit.

    Args:
        index: the index.
        query: [1, D], L2-normalised.
        top_k: number of hits of each kind.
        exact: compare with all vectors.
        kinds: the kinds of items that are searched; empty for all.
        leave_out: a row that is left out, with the windows that overlap it.

    Raises:
        UserError: a kind is unknown, or the query has another dimension.
    """
    hits: list[Hit] = []
    for kind in index.kinds:
        if kinds and kind not in kinds:
            continue
        wanted = top_k * (WINDOWS if kind == RECORDING else 1) + (leave_out is not None)
        rows, cosines = index.search(query, wanted, exact, index.rows_of(kind))
        taken = [] if leave_out is None else [leave_out]
        here: list[Hit] = []
        for row, cosine in zip(rows[0].tolist(), cosines[0].tolist()):
            if len(here) < top_k and not any(_same(index, row, other) for other in taken):
                taken.append(row)
                file, span, others = index.file(row), index.span(row), index.duplicates(row)
                here.append(Hit(len(here) + 1, index.ids[row], cosine, row, file, kind, span, others))
        hits += here
    return tuple(hits)


def _same(index: ImageIndex, row: int, other: int) -> bool:
    """Return whether two rows are the same, or overlapping windows of one recording."""
    if row == other:
        return True
    one, two = index.span(row), index.span(other)
    if one is None or two is None or recording_of(index.ids[row]) != recording_of(index.ids[other]):
        return False
    return one[0] < two[1] and two[0] < one[1]


def plain_subword(subword: str) -> str:
    """Return a subword without the mark of a word's start (sentencepiece) or end (CLIP's BPE)."""
    return subword.removesuffix(WORD_END).removeprefix(WORD_START) or subword


def format_answer(query: str, answer: Answer) -> str:
    """Return an answer as lines of text: the hits, then the keywords of speech with their times."""
    lines = [query if answer.seconds is None else f"{query} ({answer.seconds:.2f} s)"]
    for kind in dict.fromkeys(hit.kind for hit in answer.hits):
        lines.append(f"rank  cosine  {kind}")
        for hit in answer.hits:
            if hit.kind == kind:
                others = f"  (the same: {', '.join(other.id for other in hit.duplicates)})" if hit.duplicates else ""
                lines.append(f"{hit.rank:4}  {hit.cosine:6.3f}  {hit.id}{others}")
    if answer.seconds is None:
        return "\n".join(lines)
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
        raise UserError(
            f"--branch {branch}: {where} has only the branch {' and '.join(model.branches)}. Choose this one."
        )
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
