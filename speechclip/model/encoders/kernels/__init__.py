"""CPU kernels of the frozen encoders: the numbers of torch up to rounding, in less time or memory.

``SPEECHCLIP_CPU_KERNELS=0`` in the environment, or :func:`set_enabled`, switches all of them off.
"""

from __future__ import annotations

import os

_enabled = os.environ.get("SPEECHCLIP_CPU_KERNELS", "1") != "0"


def enabled() -> bool:
    """Return whether the kernels are used where they apply."""
    return _enabled


def set_enabled(value: bool) -> None:
    """Switch all kernels on or off, for models that are loaded already as well."""
    global _enabled
    _enabled = value
