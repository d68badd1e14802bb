"""SpeechCLIP: speech aligned with CLIP through images (Shih et al. 2022, arXiv 2210.00705)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechclip.api import Keyword, SpeechCLIP

__all__ = ["Keyword", "SpeechCLIP"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public names when they are used, so that ``--help`` of a script does not wait for torch."""
    if name in __all__:
        from speechclip import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
