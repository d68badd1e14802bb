"""SpeechCLIP as an upstream of s3prl, with no fork and no edit of it.

:func:`register` puts the names of :mod:`speechclip.upstream.hubconf` into s3prl's hub; afterwards
``S3PRLUpstream("speechclip_local", path_or_url=...)`` finds them. ``python -m speechclip.upstream`` does the same
before it hands over to one of s3prl's own commands.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from speechclip.common.errors import UserError

__all__ = ["quietly", "register"]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Import s3prl without what it and its packages say meanwhile, of upstreams and tasks that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def register() -> list[str]:
    """Add this project's upstreams to s3prl's hub; a second call changes nothing.

    Returns:
        the names, sorted.

    Raises:
        UserError: s3prl is not installed, or has another upstream of one of the names.
    """
    from speechclip.common.compat import prepare

    prepare()
    try:
        with quietly():
            from s3prl import hub
    except ModuleNotFoundError as error:
        raise UserError(f's3prl: {error.name} is not installed: tools/install.sh --extras "s3prl" adds it') from error
    from speechclip.upstream.hubconf import ENTRIES

    for name, entry in ENTRIES.items():
        if getattr(hub, name, entry) is not entry:
            raise UserError(f"s3prl.hub.{name}: this s3prl has an upstream of that name already")
    for name, entry in ENTRIES.items():
        setattr(hub, name, entry)
    return sorted(ENTRIES)
