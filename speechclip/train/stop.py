"""Being asked to stop: SIGTERM, as Slurm sends it before it takes a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import torch
from lightning_fabric import Fabric


class StopRequest:
    """Notes SIGTERM inside its block instead of ending the process. Outside the main thread it notes nothing.

    Args:
        fabric: launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._noted = False

    def __enter__(self) -> StopRequest:
        """Take the signal."""
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it back."""
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def came(self) -> bool:
        """Whether any of the processes was asked, the same answer in all of them. Every process has to call it."""
        if self._fabric.world_size == 1:
            return self._noted
        noted = torch.tensor(float(self._noted), device=self._fabric.device)
        return bool(self._fabric.all_reduce(noted, reduce_op="sum"))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
