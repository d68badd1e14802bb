"""Queries that arrive by HTTP: their limits, their queue and their answers."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from speechclip.common.errors import UserError
from speechclip.data.images import load_image
from speechclip.search.export import answer_record
from speechclip.search.index import ImageIndex
from speechclip.search.query import MIN_SECONDS, Answer, ask, ask_image, ask_like, ask_text, read_query

if TYPE_CHECKING:
    from speechclip.api import SpeechCLIP

logger = logging.getLogger(__name__)

PEAKS = 400  # points of the waveform that the page draws
MAX_RATE, MAX_CHANNELS = 192_000, 8  # of an upload: a compressed file may decode to more than fits into memory
MAX_PIXELS = 50_000_000  # of an uploaded picture: 150 MB decoded
MAX_TEXT = 1000  # characters of a typed query
MAX_JSON = 20_000  # bytes of a query that is not a file
QUEUE_SECONDS = 30.0  # that a query waits for the queries before it
RETRY_SECONDS = 2  # after which a refused client should try again
MAX_WAITING = 64  # queries that wait
MAX_UPLOADS = 10  # largest uploads that fit into memory at the same time
_ROW = "[0-9]{1,12}"
BODY_SECONDS = 60.0  # that a request may take to send its body


@dataclass(frozen=True)
class Limits:
    """The limits of a query and of its answer.

    Attributes:
        seconds: longest recording.
        size: largest upload in bytes.
        top_k: number of results.
        neighbours: number of subwords per keyword.
    """

    seconds: float = 30.0
    size: int = 20_000_000
    top_k: int = 12
    neighbours: int = 3


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        kind: "audio", "image", "text" or "like".
        content: the file, the text, or the id of an item.
    """

    kind: str
    content: bytes | bytearray | str


class Service:
    """Answers queries about one index with one model, one at a time.

    If the index is replaced on disk, the next query uses the new one. An answer comes from one index, and names it.

    Args:
        model: the model.
        index: an index of the model's joint space.
        limits: see there.
        branch: the branch that encodes queries; None for the model's default.
        paths: whether answers have the paths of the found files.
    """

    def __init__(
        self, model: SpeechCLIP, index: ImageIndex, limits: Limits, branch: str | None = None, paths: bool = False
    ) -> None:
        self.model, self.limits, self.branch, self.paths = model, limits, branch, paths
        self._index = index
        self._turn = asyncio.Lock()
        self._waiting = 0  # queries
        self._buffered = 0  # bytes of all uploads

    def describe(self) -> dict[str, Any]:
        """Return the description of the index and the limits, which the page checks before it sends a query."""
        index = self._current_index()
        has_clip = self.model.network.clip is not None
        return {
            "images": len(index.pictures),
            "recordings": len(index.recordings),
            "keywords": self.model.has_keywords,
            "text": has_clip,
            "pictures": has_clip,
            "min_seconds": MIN_SECONDS,
            "max_seconds": self.limits.seconds,
            "max_bytes": self.limits.size,
        }

    async def answer(self, request: Request) -> dict[str, Any]:
        """Answer the query in the body of a request.

        Raises:
            HTTPException: the query is refused, or too many queries wait.
        """
        async with self._upload(request) as body:
            query = parse_query(request.headers.get("content-type", ""), body)
            await self._wait_for_turn()
            try:
                if await request.is_disconnected():
                    raise HTTPException(400, "the client disconnected")
                return await run_in_threadpool(self.answer_query, query)
            finally:
                self._turn.release()

    def answer_query(self, query: Query) -> dict[str, Any]:
        """Return the answer to a query, for JSON.

        Raises:
            HTTPException: the query is refused.
        """
        index = self._current_index()
        wave = self._read_recording(query.content) if query.kind == "audio" else None
        try:
            found = self._find(index, query, wave)
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        report = answer_record("", found)
        for hit, entry in zip(found.hits, report["results"]):
            if not self.paths:
                del entry["file"], entry["duplicate_files"]
            has_thumbnail = index.thumbnail(hit.row) is not None
            entry["thumbnail"] = f"thumbnails/{index.version}/{hit.row}" if has_thumbnail else None
            entry["recording"] = f"recordings/{index.version}/{hit.row}" if hit.file and hit.span else None
        if wave is not None:
            report["peaks"] = peaks(wave)
        return report

    def _find(self, index: ImageIndex, query: Query, wave: np.ndarray | None) -> Answer:
        limits, content = self.limits, query.content
        if wave is not None:
            return ask(self.model, index, wave, top_k=limits.top_k, branch=self.branch, neighbours=limits.neighbours)
        if query.kind == "like":
            try:
                row = index.row(str(content))
            except UserError as error:  # it names the folder
                raise UserError("this item is no longer in the index. Search again.") from error
            return ask_like(index, row, top_k=limits.top_k)
        if self.model.network.clip is None:
            raise UserError("this model searches only with recordings. Speak, or choose a recording.")
        if isinstance(content, str):
            return ask_text(self.model, index, content, top_k=limits.top_k)
        picture = bytes(content)
        check_pixels(picture)
        return ask_image(self.model, index, load_image(picture, "the picture"), top_k=limits.top_k)

    def _read_recording(self, content: bytes | bytearray | str) -> np.ndarray:
        assert not isinstance(content, str)
        with tempfile.TemporaryDirectory(prefix="speechclip-") as folder:
            path = Path(folder) / "the recording"
            path.write_bytes(content)
            try:
                check_shape(path)
                return read_query(path, self.limits.seconds)
            except UserError as error:
                reason = str(error).replace(f"{folder}/", "").rstrip(".")
                raise HTTPException(422, f"{reason}. Speak again, or choose another recording.") from error

    def thumbnail(self, version: str, row: str) -> bytes | None:
        """Read a thumbnail by the version of the index and the row. None if it is missing, or the index is another."""
        index = self._index
        return index.read_thumbnail(int(row)) if version == index.version and re.fullmatch(_ROW, row) else None

    def recording(self, version: str, row: str) -> bytes | None:
        """Read the window of an indexed recording as wav. See :meth:`thumbnail`."""
        index = self._index
        if version != index.version or not re.fullmatch(_ROW, row) or int(row) not in index.recordings:
            return None
        span = index.span(int(row))
        return read_window(index.file(int(row)), span) if span is not None else None

    def _current_index(self) -> ImageIndex:
        """Return the index. An index that was replaced on disk is opened again."""
        index = self._index
        if not index.is_current():
            try:
                opened = ImageIndex.open(index.folder)
                opened.check_model(self.model, "the model of this server")
            except UserError as error:
                logger.warning("the new index is not used: %s", error)
            else:
                self._index = opened
                logger.info("%s: opened again", opened.folder)
        return self._index

    @contextlib.asynccontextmanager
    async def _upload(self, request: Request) -> AsyncIterator[bytearray]:
        """Read the body of a request, and count its bytes as long as it is in use."""
        body = bytearray()
        try:
            await self._read_in_time(request, body)
            yield body
        finally:
            self._buffered -= len(body)

    async def _read_in_time(self, request: Request, body: bytearray) -> None:
        try:
            await asyncio.wait_for(self._read(request, body), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(
                408, f"the upload took more than {BODY_SECONDS:g} s. Try again with a smaller file.",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        except ClientDisconnect:
            raise HTTPException(400, "the client disconnected") from None

    async def _read(self, request: Request, body: bytearray) -> None:
        limit = self.limits.size
        too_large = HTTPException(
            413, f"larger than {limit / 1e6:g} MB. Choose a smaller file.", headers={"Connection": "close"}
        )
        announced = request.headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", announced) or int(announced) > limit:
            raise too_large
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise too_large
            if self._buffered + len(chunk) > MAX_UPLOADS * limit:
                raise busy()
            body += chunk
            self._buffered += len(chunk)
        if not body:
            raise HTTPException(422, "the query is empty. Speak, type, or choose a file.")

    async def _wait_for_turn(self) -> None:
        """Acquire the lock. Queries are served in the order in which their bodies were complete."""
        if not self._turn.locked() and not self._waiting:
            await self._turn.acquire()  # at once
            return
        if self._waiting >= MAX_WAITING:
            raise busy()
        self._waiting += 1
        try:
            await asyncio.wait_for(self._turn.acquire(), QUEUE_SECONDS)
        except asyncio.TimeoutError:
            raise busy() from None
        finally:
            self._waiting -= 1


def parse_query(content_type: str, body: bytes | bytearray) -> Query:
    """Return the query in the body of a request: JSON with "text" or "like", a picture, or else a recording.

    Raises:
        HTTPException: the JSON is not a query.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        return Query("image" if kind.startswith("image/") else "audio", body)
    try:
        content = json.loads(body) if len(body) <= MAX_JSON else None
    except (ValueError, RecursionError):
        content = None
    named = [(key, value) for key, value in content.items()] if isinstance(content, dict) else []
    if len(named) != 1 or named[0][0] not in ("text", "like") or not isinstance(named[0][1], str):
        raise HTTPException(
            422, f'not a query. Send JSON of at most {MAX_JSON} bytes: {{"text": "..."}} or {{"like": "ID"}}.'
        )
    key, value = named[0]
    if key == "text" and not value.strip():
        raise HTTPException(422, "the text is empty. Type some words.")
    if key == "text" and len(value) > MAX_TEXT:
        raise HTTPException(422, f"the text has {len(value)} characters. Use at most {MAX_TEXT}.")
    if key == "text" and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise HTTPException(422, "the text is not valid Unicode. Type it again.")
    return Query(key, value)


def busy() -> HTTPException:
    """Return the refusal for a server with too many queries."""
    return HTTPException(
        503, "too many queries at the same time. Try again in a moment.",
        headers={"Retry-After": str(RETRY_SECONDS), "Connection": "close"},
    )  # fmt: skip


def read_window(path: str, span: tuple[float, float]) -> bytes | None:
    """Return a part of a recording as wav; None if the file is missing or cannot be read.

    Args:
        path: the audio file.
        span: start and end in seconds.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            file.seek(min(file.frames, round(span[0] * file.samplerate)))
            samples = file.read(round((span[1] - span[0]) * file.samplerate), dtype="float32", always_2d=True)
            buffer = io.BytesIO()
            soundfile.write(buffer, samples.mean(axis=1), file.samplerate, format="WAV", subtype="PCM_16")
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        return None
    return buffer.getvalue()


def check_shape(path: Path) -> None:
    """Check the number of channels and the sample rate of an audio file before it is decoded.

    Raises:
        UserError: no recording of speech has that many channels or that rate.
    """
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError):
        return  # load_audio names the problem
    if info.samplerate > MAX_RATE or info.channels > MAX_CHANNELS:
        raise UserError(
            f"{path}: {info.channels} channels at {info.samplerate} Hz. At most {MAX_CHANNELS} channels at "
            f"{MAX_RATE} Hz are supported."
        )


def check_pixels(content: bytes) -> None:
    """Check the size of a picture before it is decoded.

    Raises:
        UserError: the picture would need too much memory.
    """
    with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # load_image explains it
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
        if width * height > MAX_PIXELS:
            raise UserError(
                f"the picture: {width}x{height} pixels. At most {MAX_PIXELS // 10**6} megapixels are read. Shrink it."
            )


def peaks(wave: np.ndarray) -> list[float]:
    """Return the largest magnitude in each of at most PEAKS parts of a waveform [n], relative to the largest of all."""
    edges = np.linspace(0, len(wave), min(PEAKS, len(wave)), endpoint=False).astype(int)
    found = np.maximum.reduceat(np.abs(wave), edges)
    return [round(float(value), 3) for value in found / max(float(found.max()), 1e-9)]
