"""Restore functions that s3prl calls and that current packages have removed, in this process only."""

from __future__ import annotations

from typing import Any


def provide() -> None:
    """Add torchaudio's missing functions, and ``iteritems`` of pandas (removed in 2.0). A second call does nothing."""
    import pandas

    from speechclip.upstream import torchaudio_io

    torchaudio_io.provide()
    for kind in (pandas.Series, pandas.DataFrame):
        untyped: Any = kind
        if not hasattr(untyped, "iteritems"):
            untyped.iteritems = untyped.items
