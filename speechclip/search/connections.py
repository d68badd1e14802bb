"""The sockets of the server: deadlines and limits of connections, and the server itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import select
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from speechclip.common.errors import UserError

try:
    import starlette  # noqa: F401  the other modules of the server need it
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as missing:
    raise UserError(
        f'{missing.name} is not installed. Install it with: tools/install.sh --extras "search"'
    ) from missing

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)

HEADER_SECONDS = 10.0  # that a connection may take to send the headers of a request
READ_SECONDS = 30.0  # that a client may leave an answer unread
MAX_CONNECTIONS = 2000  # if the system allows that many open files
OTHER_FILES = 100  # that the process may have open


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a deadline for the headers of a request and a limit on the number of connections.

    If there are too many connections, the oldest one whose client has to send something, and did not, is closed.
    """

    _timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
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
        self._stop_unread_timer()

    def pause_writing(self) -> None:
        """Start the deadline of a client that does not read its answer."""
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the deadline: the client has read a part of its answer."""
        super().resume_writing()
        self._stop_unread_timer()

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
            self._timer = self.loop.call_later(HEADER_SECONDS, self._close)

    def _close(self) -> None:
        """Close the connection, and discard data that the client has not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

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
        raise UserError(
            f"--host {host} --port {port}: cannot listen there: {reason}. Choose another address or port."
        ) from error
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


def run(app: Starlette, bound: socket.socket, path_prefix: str = "") -> None:
    """Serve on a bound socket until an interrupt, and log the address of the page."""
    raise_file_limit()
    host, port = bound.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    logger.info("http://%s:%d%s/ (stop with Ctrl-C)", name, port, path_prefix)
    if host in ("0.0.0.0", "::"):
        logger.warning("everyone on the network can send queries and see the thumbnails")
    make_server(app).run(sockets=[bound])
