"""A web page to search by voice, for the browser of this machine.

The server is small on purpose. It has a page of four files, ``/info``, ``/search``, and the thumbnails by number. No
route takes a file name, and no recording is kept. It serves one query at a time; other queries wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import resource
import select
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from speechclip.common.errors import UserError
from speechclip.search.index import ImageIndex
from speechclip.search.query import MIN_SECONDS, ask, read_query

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import MutableHeaders
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as missing:
    raise UserError(
        f'{missing.name} is not installed. Install it with: tools/install.sh --extras "search"'
    ) from missing

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from speechclip.api import SpeechCLIP

logger = logging.getLogger(__name__)

PAGE = {"/": "index.html", "/page.js": "page.js", "/recorder.js": "recorder.js", "/page.css": "page.css"}
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
PEAKS = 400  # points of the waveform that the page draws
MAX_RATE, MAX_CHANNELS = 192_000, 8  # of an upload: a compressed file may decode to more than fits into memory
QUEUE_SECONDS = 30.0  # that a query waits for the queries before it
RETRY_SECONDS = 2  # after which a refused client should try again
MAX_WAITING = 64  # queries that wait
MAX_UPLOADS = 10  # largest uploads that fit into memory at the same time
HEADER_SECONDS = 10.0  # that a connection may take to send the headers of a request
BODY_SECONDS = 60.0  # that a request may take to send its body
MAX_CONNECTIONS = 2000  # if the system allows that many open files
OTHER_FILES = 100  # that the process may have open
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """The limits of a query and of its answer.

    Attributes:
        seconds: longest recording.
        size: largest upload in bytes.
        top_k: number of images.
        neighbours: number of subwords per keyword.
    """

    seconds: float = 30.0
    size: int = 20_000_000
    top_k: int = 12
    neighbours: int = 3


class Service:
    """Answers queries about one index with one model, one at a time.

    Args:
        model: the model.
        index: an index of the model's joint space.
        limits: see there.
        branch: the branch that encodes queries; None for the model's default.
    """

    def __init__(self, model: SpeechCLIP, index: ImageIndex, limits: Limits, branch: str | None = None) -> None:
        self.model, self.index, self.limits, self.branch = model, index, limits, branch
        self._turn = asyncio.Lock()
        self._waiting = 0  # queries
        self._buffered = 0  # bytes of all uploads

    def describe(self) -> dict[str, Any]:
        """Return the description of the index and the limits, which the page checks before it sends a recording."""
        return {
            "images": len(self.index),
            "keywords": self.model.has_keywords,
            "min_seconds": MIN_SECONDS,
            "max_seconds": self.limits.seconds,
            "max_bytes": self.limits.size,
        }

    async def answer(self, request: Request) -> dict[str, Any]:
        """Answer the recording in the body of a request.

        Raises:
            HTTPException: the recording is refused, or too many queries wait.
        """
        async with self._upload(request) as recording:
            await self._wait_for_turn()
            try:
                if await request.is_disconnected():
                    raise HTTPException(400, "the client disconnected")
                return await run_in_threadpool(self.answer_recording, recording)
            finally:
                self._turn.release()

    def answer_recording(self, recording: bytes | bytearray) -> dict[str, Any]:
        """Return the answer to the content of an audio file, with the peaks of its waveform.

        Raises:
            HTTPException: the recording is refused.
        """
        with tempfile.TemporaryDirectory(prefix="speechclip-") as folder:
            path = Path(folder) / "the recording"
            path.write_bytes(recording)
            try:
                check_shape(path)
                wave = read_query(path, self.limits.seconds)
            except UserError as error:
                raise HTTPException(422, str(error).replace(f"{folder}/", "")) from error
        found = ask(
            self.model, self.index, wave, top_k=self.limits.top_k, branch=self.branch,
            neighbours=self.limits.neighbours,
        )  # fmt: skip
        report = found.as_dict()
        for hit, entry in zip(found.hits, report["results"]):
            del entry["file"]  # paths of this machine are private
            entry["thumbnail"] = None if self.index.thumbnail(hit.row) is None else f"thumbnails/{hit.row}"
        report["peaks"] = peaks(wave)
        return report

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
                408, f"the upload took more than {BODY_SECONDS:g} s", headers={"Connection": "close"}
            ) from None
        except ClientDisconnect:
            raise HTTPException(400, "the client disconnected") from None

    async def _read(self, request: Request, body: bytearray) -> None:
        limit = self.limits.size
        too_large = HTTPException(413, f"larger than {limit / 1e6:g} MB", headers={"Connection": "close"})
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
            raise HTTPException(422, "an empty recording")

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


def busy() -> HTTPException:
    """Return the refusal for a server with too many queries."""
    return HTTPException(
        503, "too many queries at the same time. Try again in a moment.",
        headers={"Retry-After": str(RETRY_SECONDS), "Connection": "close"},
    )  # fmt: skip


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


def peaks(wave: np.ndarray) -> list[float]:
    """Return the largest magnitude in each of at most PEAKS parts of a waveform [n], relative to the largest of all."""
    edges = np.linspace(0, len(wave), min(PEAKS, len(wave)), endpoint=False).astype(int)
    found = np.maximum.reduceat(np.abs(wave), edges)
    return [round(float(value), 3) for value in found / max(float(found.max()), 1e-9)]


def make_app(
    model: SpeechCLIP, index: ImageIndex, limits: Limits, *, host: str = "127.0.0.1", branch: str | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Starlette:  # fmt: skip
    """Create the web application.

    Args:
        model: see :class:`Service`.
        index: see :class:`Service`.
        limits: see :class:`Service`.
        host: the address to listen on. Requests with another host name are refused (DNS rebinding).
        branch: see :class:`Service`.
        allowed_hosts: further host names, such as that of a proxy.
    """
    service = Service(model, index, limits, branch)

    async def page(request: Request) -> Response:
        name = PAGE[request.url.path]
        content = files("speechclip.search").joinpath("page").joinpath(name).read_bytes()
        return Response(content, media_type=TYPES[name.rsplit(".", 1)[1]])

    async def info(request: Request) -> Response:
        return AsciiJSONResponse(service.describe())

    async def thumbnail(request: Request) -> Response:
        content = await run_in_threadpool(read_thumbnail, index, request.path_params["row"])
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "no-cache"})

    async def search(request: Request) -> Response:
        check_same_origin(request, allowed_hosts)
        return AsciiJSONResponse(await service.answer(request))

    names = ["localhost", "127.0.0.1", "[::1]", host, f"[{host}]", *allowed_hosts]
    if host in ("0.0.0.0", "::"):
        names = ["*"]
    return Starlette(
        routes=[
            *(Route(path, page) for path in PAGE),
            Route("/info", info),
            Route("/thumbnails/{row}", thumbnail),
            Route("/search", search, methods=["POST"]),
        ],
        middleware=[Middleware(AddHeaders), Middleware(TrustedHostMiddleware, allowed_hosts=names)],
        exception_handlers={HTTPException: explain},
    )


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII. A string that UTF-8 cannot encode, such as an undecodable file name, is escaped."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return json.dumps(content, allow_nan=False).encode("ascii")


async def explain(request: Request, error: Exception) -> Response:
    """Return a refusal as JSON, which the page shows."""
    assert isinstance(error, HTTPException)
    return AsciiJSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


def read_thumbnail(index: ImageIndex, row: str) -> bytes:
    """Read a thumbnail by the number in its address.

    Raises:
        HTTPException: the thumbnail is missing.
    """
    path = index.thumbnail(int(row)) if re.fullmatch("[0-9]{1,12}", row) else None
    if path is not None:
        with contextlib.suppress(OSError):  # the index was replaced in the meantime
            return path.read_bytes()
    raise HTTPException(404, "no such thumbnail")


def check_same_origin(request: Request, allowed_hosts: Sequence[str] = ()) -> None:
    """Refuse a query that a page of another site sends.

    Raises:
        HTTPException: the query is refused.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    address = urlsplit(origin or "")
    same = not origin or address.netloc == request.headers.get("host") or address.hostname in allowed_hosts
    if site not in ("same-origin", "none") or not same:
        raise HTTPException(403, "the query is from another site")


class AddHeaders:
    """Adds HEADERS to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, and add the headers to its response."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a deadline for the headers of a request and a limit on the number of connections.

    If there are too many connections, the oldest one whose client has to send something, and did not, is closed.
    """

    _timer: asyncio.TimerHandle | None = None
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline, and close another connection if there are too many."""
        super().connection_made(transport)
        self._start_or_stop_timer()
        open_ones = [one for one in self.connections if not one.transport.is_closing()]
        if len(open_ones) > max_connections():
            waiting = [one for one in open_ones if isinstance(one, BoundedProtocol) and one.waits_for_client]
            by_age = sorted(waiting, key=lambda one: one._since)
            next((one for one in by_age if not one.has_unread_data), self).transport.close()

    def data_received(self, data: bytes) -> None:
        """Handle data from the client."""
        super().data_received(data)
        self._start_or_stop_timer()

    def on_response_complete(self) -> None:
        """Wait for the next request of the connection."""
        super().on_response_complete()
        self._start_or_stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._stop_timer()

    @property
    def waits_for_client(self) -> bool:
        """Return whether the client has to send something: the headers or the rest of the body of a request."""
        return not self._has_request or self.cycle.more_body

    @property
    def has_unread_data(self) -> bool:
        """Return whether the client has sent data that the event loop has not read yet."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_or_stop_timer(self) -> None:
        if self._has_request or self.transport.is_closing():
            self._stop_timer()
        elif self._timer is None:
            self._since = self.loop.time()
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@contextlib.contextmanager
def listen_on(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket. This happens before the model is loaded, so that a port in use is an error at once.

    Args:
        host: name or address.
        port: the port; 0 for any free one.

    Raises:
        UserError: the address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise UserError(f"--host {host} --port {port}: cannot listen there: {reason}") from error
    with bound:
        yield bound


def make_server(app: Starlette) -> uvicorn.Server:
    """Create the server of an application."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
        )  # fmt: skip
    )


def max_connections() -> int:
    """Return the number of connections that the limits of the server and of open files allow."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, files - OTHER_FILES))


def raise_file_limit() -> None:
    """Raise the limit of open files, often 1,024, as far as the system allows and MAX_CONNECTIONS needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def run(app: Starlette, bound: socket.socket) -> None:
    """Serve on a bound socket until an interrupt, and log the address of the page."""
    raise_file_limit()
    host, port = bound.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    logger.info("http://%s:%d/ (stop with Ctrl-C)", name, port)
    if host in ("0.0.0.0", "::"):
        logger.warning("everyone on the network can send queries and see the thumbnails")
    make_server(app).run(sockets=[bound])
