"""Stop at the next safe point after SIGTERM, which Slurm sends before it takes a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class GracefulShutdown:
    """Record SIGTERM inside a ``with`` block instead of ending the process.

    The instance can be called: it returns whether the signal came. Outside the main thread, where Python does not
    allow signal handlers, it records nothing.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._installed = False

    def __enter__(self) -> GracefulShutdown:
        """Install the signal handler."""
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the previous signal handler."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)

    def __call__(self) -> bool:
        """Return whether SIGTERM came."""
        return self._requested.is_set()

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._requested.set()
