"""The device that models run on, and the number of CPUs."""

from __future__ import annotations

import os

from speechclip.common.errors import UserError


def pick_device(requested: str = "auto") -> str:
    """Return the torch name of the device to use.

    Args:
        requested: "cpu", "cuda" or "auto". With "auto", a GPU is used if there is one.

    Raises:
        UserError: "cuda" was requested and torch finds no GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise UserError("--device: torch finds no GPU. Use --device cpu.")
    return ("cuda" if available else "cpu") if requested == "auto" else requested


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
