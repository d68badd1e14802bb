"""A web page to search by voice, for the browser of this machine.

The server is small on purpose. It has a page of a few files, ``/info``, ``/search``, and the thumbnails and windows of
recordings by number. No route takes a file name, and no query is kept. It serves one query at a time; other queries
wait.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from speechclip.search.index import ImageIndex
from speechclip.search.service import Limits, Service

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from speechclip.api import SpeechCLIP

PAGE = {"/": "index.html"} | {
    f"/{name}": name for name in ("page.css", "page.js", "dom.js", "player.js", "recorder.js", "results.js")
}
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    model: SpeechCLIP, index: ImageIndex, limits: Limits, *, host: str = "127.0.0.1", branch: str | None = None,
    allowed_hosts: Sequence[str] = (), path_prefix: str = "",
) -> Starlette:  # fmt: skip
    """Create the web application.

    Args:
        model: see :class:`Service`.
        index: see :class:`Service`.
        limits: see :class:`Service`.
        host: the address to listen on. Requests with another host name are refused (DNS rebinding).
        branch: see :class:`Service`.
        allowed_hosts: further host names, such as that of a proxy.
        path_prefix: path of the page, such as "/search", if a proxy passes it on; "" for none.
    """
    # Only the user of this machine may know where the files are.
    service = Service(model, index, limits, branch, paths=is_loopback(host) and not allowed_hosts)

    async def page(request: Request) -> Response:
        name = PAGE[request.url.path.removeprefix(path_prefix)]
        content = files("speechclip.search").joinpath("page").joinpath(name).read_bytes()
        return Response(content, media_type=TYPES[name.rsplit(".", 1)[1]], headers={"Cache-Control": "no-cache"})

    async def info(request: Request) -> Response:
        return AsciiJSONResponse(await run_in_threadpool(service.describe))

    async def thumbnail(request: Request) -> Response:
        content = await run_in_threadpool(service.thumbnail, **request.path_params)
        if content is None:
            raise HTTPException(404, "no such thumbnail")
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def recording(request: Request) -> Response:
        content = await run_in_threadpool(service.recording, **request.path_params)
        if content is None:
            raise HTTPException(404, "no such recording")
        return Response(content, media_type="audio/wav", headers={"Cache-Control": "private, max-age=3600"})

    async def search(request: Request) -> Response:
        check_same_origin(request, allowed_hosts)
        return AsciiJSONResponse(await service.answer(request))

    names = ["localhost", "127.0.0.1", "[::1]", host, f"[{host}]", *allowed_hosts]
    if host in ("0.0.0.0", "::"):
        names = ["*"]
    routes = [
        *(Route(path, page) for path in PAGE),
        Route("/info", info),
        Route("/thumbnails/{version}/{row}", thumbnail),
        Route("/recordings/{version}/{row}", recording),
        Route("/search", search, methods=["POST"]),
    ]
    return Starlette(
        routes=[Mount(path_prefix, routes=routes)] if path_prefix else routes,
        middleware=[Middleware(AddHeaders), Middleware(TrustedHostMiddleware, allowed_hosts=names)],
        exception_handlers={HTTPException: explain},
    )


def is_loopback(host: str) -> bool:
    """Return whether a server on this address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII. A string that UTF-8 cannot encode, such as an undecodable file name, is escaped."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return json.dumps(content, allow_nan=False).encode("ascii")


async def explain(request: Request, error: Exception) -> Response:
    """Return a refusal as JSON, which the page shows."""
    assert isinstance(error, HTTPException)
    return AsciiJSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


def check_same_origin(request: Request, allowed_hosts: Sequence[str] = ()) -> None:
    """Refuse a query that a page of another site sends.

    Raises:
        HTTPException: the query is refused.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    try:
        address = urlsplit(origin or "")
    except ValueError:  # not an address
        address = urlsplit("")
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
