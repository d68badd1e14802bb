"""Queries that arrive by HTTP: their limits, their queue and their answers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import re
import tempfile
import time
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
from speechclip.search.index import INFO, ImageIndex
from speechclip.search.query import MIN_SECONDS, Answer, Hit, ask, read_query

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
        self._opened = (index, index_token(index.folder))
        self._refused = ""  # token of a new index that cannot be used
        self._turn = asyncio.Lock()
        self._waiting = 0  # queries
        self._buffered = 0  # bytes of all uploads

    def describe(self) -> dict[str, Any]:
        """Return the description of the index and the limits, which the page checks before it sends a query."""
        has_clip = self.model.network.clip is not None
        return {
            "images": len(self._current_index()[0]),
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
        index, token = self._current_index()
        wave = self._read_recording(query.content) if query.kind == "audio" else None
        try:
            found = self._find(index, query, wave)
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        report = found.as_dict()
        for hit, entry in zip(found.hits, report["results"]):
            if not self.paths:
                del entry["file"]
            entry["thumbnail"] = None if index.thumbnail(hit.row) is None else f"thumbnails/{token}/{hit.row}"
        if wave is not None:
            report["peaks"] = peaks(wave)
        return report

    def _find(self, index: ImageIndex, query: Query, wave: np.ndarray | None) -> Answer:
        limits = self.limits
        if wave is not None:
            return ask(self.model, index, wave, top_k=limits.top_k, branch=self.branch, neighbours=limits.neighbours)
        started = time.perf_counter()
        vector = self._embed(index, query)
        encoded = time.perf_counter()
        rows, cosines = index.search(vector, limits.top_k)
        hits = tuple(
            Hit(rank, index.ids[row], float(cosine), int(row), index.files[row] if index.files else "")
            for rank, (row, cosine) in enumerate(zip(rows[0].tolist(), cosines[0].tolist()), start=1)
        )
        return Answer(hits, None, 0.0, 1000 * (encoded - started), 1000 * (time.perf_counter() - encoded))

    def _embed(self, index: ImageIndex, query: Query) -> np.ndarray:
        """Return the embedding [1, D] of a picture, a text or an indexed item."""
        if query.kind != "like" and self.model.network.clip is None:
            raise UserError("this model searches only with recordings. Speak, or choose a recording.")
        if query.kind == "like":
            if query.content not in index.ids:
                raise UserError("this item is no longer in the index. Search again.")
            return index.vectors[[index.ids.index(str(query.content))]].astype(np.float32)
        if query.kind == "text":
            return self.model.encode_text(str(query.content)).float().cpu().numpy()
        assert not isinstance(query.content, str)
        content = bytes(query.content)
        check_pixels(content)
        return self.model.encode_image(load_image(content, "the picture")).float().cpu().numpy()

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

    def thumbnail(self, token: str, row: str) -> bytes | None:
        """Read a thumbnail by token and row. None if it is missing, or if the index was replaced."""
        index, current = self._opened
        path = index.thumbnail(int(row)) if token == current and re.fullmatch("[0-9]{1,12}", row) else None
        if path is None:
            return None
        with contextlib.suppress(OSError):  # the index was replaced in the meantime
            content = path.read_bytes()
            return content if index_token(index.folder) == token else None
        return None

    def _current_index(self) -> tuple[ImageIndex, str]:
        """Return the index and its token. An index that was replaced on disk is opened again."""
        folder = self._opened[0].folder
        token = index_token(folder)
        if token and token not in (self._opened[1], self._refused):
            try:
                opened = ImageIndex.open(folder)
                opened.check_model(self.model, "the model of this server")
            except UserError as error:
                if index_token(folder) == token:  # else it was replaced while it was opened
                    self._refused = token
                    logger.warning("the new index is not used: %s", error)
            else:
                if index_token(folder) == token:
                    self._opened = (opened, token)
                    logger.info("%s: opened again, %d items", folder, len(opened))
        return self._opened

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


def index_token(folder: Path) -> str:
    """Return a name for the present content of an index folder; "" if the index is missing.

    An index is replaced as a whole, so that a new index has a new ``index.json``.
    """
    try:
        found = (folder / INFO).stat()
    except OSError:
        return ""
    return hashlib.sha256(f"{found.st_dev} {found.st_ino} {found.st_mtime_ns} {found.st_size}".encode()).hexdigest()[
        :16
    ]


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
