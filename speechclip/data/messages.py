"""Warnings of third-party libraries as log lines with the name of the file.

libmpg123 and libtiff write to standard error, and PIL uses Python's warnings. None of them names the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from speechclip.common.errors import first_line

logger = logging.getLogger(__name__)

MPG123 = re.compile(rb"\[\S*libmpg123|(Note|Warning|Hint): ")
LIBTIFF = re.compile(rb"(\w*TIFF\w*|\w+(Decode|Setup|Fill|Read|Fetch)\w*): ")

_STDERR = 2  # file descriptor
_stderr_lock = threading.Lock()


@contextlib.contextmanager
def log_stderr(name: str, pattern: re.Pattern[bytes]) -> Iterator[None]:
    """Log the lines that a C library writes to standard error. Only one thread runs inside this block at a time.

    Args:
        name: the file that the library reads.
        pattern: start of the library's lines. Other lines belong to other threads, and go to standard error.
    """
    with _stderr_lock, tempfile.TemporaryFile() as caught:
        try:
            saved = os.dup(_STDERR)
        except OSError:  # the process has no standard error
            yield
            return
        os.dup2(caught.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(saved, _STDERR)
            caught.seek(0)
            for line in caught.readlines():
                if pattern.match(line):
                    logger.warning("%s: %s", name, line.decode(errors="replace").strip())
                elif line.strip():
                    os.write(saved, line)
            os.close(saved)


class _WarningRouter:
    """Log Python's warnings of PIL. Threads share one change of the global filters, and each one has a file name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._names = threading.local()
        self._filters: warnings.catch_warnings[Any] | None = None
        self._show: Any = None

    @contextlib.contextmanager
    def log(self, name: str) -> Iterator[None]:
        """Log warnings of this thread with the name of a file, each text once."""
        with self._lock:
            if not self._users:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("always", module=r"PIL\.|speechclip\.data\.")
                warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # images.py has the guard
                self._show = warnings.showwarning
                warnings.showwarning = self._route
            self._users += 1
        self._names.current, self._names.seen = name, set()
        try:
            yield
        finally:
            self._names.current = None
            with self._lock:
                self._users -= 1
                if not self._users and self._filters is not None:
                    self._filters.__exit__(None, None, None)

    def _route(self, message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        name = getattr(self._names, "current", None)
        if name is None:
            self._show(message, category, *where, **options)
            return
        text = first_line(message) if isinstance(message, Warning) else message
        if text not in self._names.seen:
            self._names.seen.add(text)
            logger.warning("%s: %s", name, text.strip())


log_warnings = _WarningRouter().log
