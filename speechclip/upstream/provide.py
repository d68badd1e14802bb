"""What s3prl's code calls and current packages no longer have, given back for this process alone."""

from __future__ import annotations

from typing import Any


def provide() -> None:
    """Add torchaudio's missing functions, and ``iteritems`` of pandas (gone since 2.0). Idempotent."""
    import pandas

    from speechclip.upstream import torchaudio_io

    torchaudio_io.provide()
    for kind in (pandas.Series, pandas.DataFrame):
        untyped: Any = kind
        if not hasattr(untyped, "iteritems"):
            untyped.iteritems = untyped.items
