"""Peak of the live tensors of a computation, counted without computing it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Count the bytes of all storages that operations create and that still exist.

    Attributes:
        now: bytes that exist.
        highest: the most bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.highest = 0, 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its new storages."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(storage)
        self.now += size
        self.highest = max(self.highest, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size


def peak(make: Callable[[], Callable[[], None]], *, fake: bool = True) -> dict[str, int]:
    """Return the bytes of live tensors of a step.

    Args:
        make: builds weights and inputs, and returns the step.
        fake: use tensors without values. Memory and time are then not needed.

    Returns:
        "held", before the step, and "peak", the most at one time during it. Memory that a library takes for itself,
        and gaps between tensors, are not in it.
    """
    from contextlib import nullcontext

    from torch._subclasses.fake_tensor import FakeTensorMode

    counted = LiveTensors()
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext(), counted:
        work = make()
        held = counted.now
        work()
    return {"held": held, "peak": counted.highest}
