"""A page to search by voice, for this machine's own browser.

Starlette and a page of our own: Gradio would bring a data-frame library, fonts and scripts from other hosts and a route
that serves files by path. Here a route serves one of four files of the package or a thumbnail by its number.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from speechclip.common.errors import UserError
from speechclip.data.audio import load_audio
from speechclip.search.index import ImageIndex
from speechclip.search.query import ask

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import MutableHeaders
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route
except ImportError as missing:
    raise UserError(f'{missing.name} is not installed: tools/install.sh --extras "search"') from missing

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from speechclip.api import SpeechCLIP

PAGE = {"/": "index.html", "/page.js": "page.js", "/recorder.js": "recorder.js", "/page.css": "page.css"}
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
PEAKS = 400  # points of the waveform that is drawn
WAITING = 4  # queries that may wait for the one that is answered
MAX_RATE, MAX_CHANNELS = 192_000, 8  # of an upload: a compressed file can hold more than memory does
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
    """seconds, size (bytes): of a query at most. top_k: images shown. neighbours: subwords named for a keyword."""

    seconds: float = 30.0
    size: int = 20_000_000
    top_k: int = 12
    neighbours: int = 3


class Service:
    """Answers queries about one index with one model, one at a time."""

    def __init__(self, model: SpeechCLIP, index: ImageIndex, limits: Limits, branch: str | None = None) -> None:
        self.model, self.index, self.limits, self.branch = model, index, limits, branch
        self._one, self._waiting = threading.Lock(), threading.Semaphore(WAITING + 1)

    def describe(self) -> dict[str, Any]:
        """What the page says about the index, and the limits it keeps to before anything is sent."""
        return {
            "images": len(self.index),
            "head": self.model.network.config.head.name,
            "keywords": self.model.has_keywords,
            "max_seconds": self.limits.seconds,
            "max_bytes": self.limits.size,
        }

    def answer(self, recording: bytes) -> dict[str, Any]:
        """The answer to a recording, with its waveform as peaks. Raises HTTPException."""
        if not self._waiting.acquire(blocking=False):
            raise HTTPException(503, "too many queries at once: try again in a moment")
        try:
            with self._one, tempfile.TemporaryDirectory(prefix="speechclip-") as folder:
                path = Path(folder) / "the recording"
                path.write_bytes(recording)
                try:
                    return self._answer(path)
                except UserError as error:
                    raise HTTPException(422, str(error).replace(f"{folder}/", "")) from error
        finally:
            self._waiting.release()

    def _answer(self, path: Path) -> dict[str, Any]:
        check_shape(path)
        found = ask(
            self.model, self.index, path, top_k=self.limits.top_k, branch=self.branch,
            neighbours=self.limits.neighbours, max_seconds=self.limits.seconds,
        )  # fmt: skip
        report = found.as_dict()
        for hit, entry in zip(found.hits, report["results"]):
            del entry["file"]  # where images lie on this machine is nobody's business
            entry["thumbnail"] = None if self.index.thumbnail(hit.row) is None else f"thumbnails/{hit.row}"
        report["peaks"] = peaks(load_audio(path))
        return report


def check_shape(path: Path) -> None:
    """Raise UserError for audio with more channels or a higher rate than any recording has."""
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError):
        return  # load_audio says what is wrong with it
    if info.samplerate > MAX_RATE or info.channels > MAX_CHANNELS:
        raise UserError(
            f"{path}: {info.channels} channels at {info.samplerate} Hz, {MAX_CHANNELS} at {MAX_RATE} at most"
        )


def peaks(wave: np.ndarray) -> list[float]:
    """The largest magnitude in each of at most PEAKS stretches of a waveform [n], relative to the largest of all."""
    edges = np.linspace(0, len(wave), min(PEAKS, len(wave)), endpoint=False).astype(int)
    found = np.maximum.reduceat(np.abs(wave), edges)
    return [round(float(value), 3) for value in found / max(float(found.max()), 1e-9)]


def make_app(
    model: SpeechCLIP, index: ImageIndex, limits: Limits, *, host: str = "127.0.0.1", branch: str | None = None
) -> Starlette:
    """The web application. host: what it will listen on; requests under other names are refused (DNS rebinding)."""
    service = Service(model, index, limits, branch)

    async def page(request: Request) -> Response:
        name = PAGE[request.url.path]
        content = files("speechclip.search").joinpath("page").joinpath(name).read_bytes()
        return Response(content, media_type=TYPES[name.rsplit(".", 1)[1]])

    async def info(request: Request) -> Response:
        return JSONResponse(service.describe())

    async def thumbnail(request: Request) -> Response:
        path = index.thumbnail(request.path_params["row"])
        if path is None:
            raise HTTPException(404, "no such thumbnail")
        return FileResponse(path, media_type="image/jpeg")

    async def search(request: Request) -> Response:
        check_same_origin(request)
        return JSONResponse(await run_in_threadpool(service.answer, await read_body(request, limits.size)))

    names = ["*"] if host in ("0.0.0.0", "::") else ["localhost", "127.0.0.1", "[::1]", host, f"[{host}]"]
    return Starlette(
        routes=[
            *(Route(path, page) for path in PAGE),
            Route("/info", info),
            Route("/thumbnails/{row:int}", thumbnail),
            Route("/search", search, methods=["POST"]),
        ],
        middleware=[Middleware(AddHeaders), Middleware(TrustedHostMiddleware, allowed_hosts=names)],
        exception_handlers={HTTPException: explain},
    )


async def explain(request: Request, error: Exception) -> Response:
    """A refusal as JSON, for the page to show."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


def check_same_origin(request: Request) -> None:
    """Refuse a query that a page of another site sends."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none") or (origin and urlsplit(origin).netloc != request.headers.get("host")):
        raise HTTPException(403, "asked from another site")


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, given up as soon as it is larger than ``limit`` bytes."""
    too_large = HTTPException(413, f"larger than {limit / 1e6:g} MB", headers={"Connection": "close"})
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    if not body:
        raise HTTPException(422, "an empty recording")
    return bytes(body)


class AddHeaders:
    """Adds HEADERS to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the headers."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


@contextlib.contextmanager
def listen_on(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to an address before the model is loaded, so that a taken port is told at once (UserError)."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from error
    with bound:
        yield bound


def run(app: Starlette, bound: socket.socket) -> None:
    """Answer requests on a bound socket until interrupted; prints the page's address."""
    host, port = bound.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    print(f"http://{name}:{port}/ (end with Ctrl-C)", flush=True)
    if host in ("0.0.0.0", "::"):
        print("warning: everybody on the network can ask and see the thumbnails", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[bound])
