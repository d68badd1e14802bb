"""CPU kernels of the frozen encoders. They compute torch's numbers up to rounding, in less time or memory.

The environment variable ``SPEECHCLIP_CPU_KERNELS=0`` or :func:`set_enabled` switches all of them off.
"""

from __future__ import annotations

import os

_enabled = os.environ.get("SPEECHCLIP_CPU_KERNELS", "1") != "0"


def enabled() -> bool:
    """Return whether the kernels are used."""
    return _enabled


def set_enabled(value: bool) -> None:
    """Switch all kernels on or off, also for models that are already loaded."""
    global _enabled
    _enabled = value
