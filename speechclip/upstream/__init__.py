"""SpeechCLIP as an upstream of s3prl, without a fork of s3prl.

:func:`register` adds the names of :mod:`speechclip.upstream.hubconf` to s3prl's hub. After that,
``S3PRLUpstream("speechclip_local", path_or_url=...)`` finds them. ``python -m speechclip.upstream`` registers the names
and runs one of s3prl's own commands.

Import this package before s3prl. Then s3prl can be imported if torchaudio is a CUDA build next to a CPU build of torch.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from typing import Any

from speechclip.common.compat import prepare
from speechclip.common.errors import UserError

__all__ = ["quietly", "register"]


class _PrepareTorchaudio(MetaPathFinder):
    """Call :func:`prepare` when a package that needs it is imported for the first time.

    Calling it here at once would import torch, which takes seconds.
    """

    packages = ("torchaudio", "torchvision", "transformers")

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        """Prepare the import and leave it to the other finders."""
        if name in self.packages:
            sys.meta_path.remove(self)
            prepare()


if not any(type(finder).__name__ == _PrepareTorchaudio.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _PrepareTorchaudio())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings while s3prl is imported. They are about upstreams and tasks that are not used."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def register() -> list[str]:
    """Add this project's upstreams to s3prl's hub. A second call changes nothing.

    Returns:
        The names, sorted.

    Raises:
        UserError: s3prl is not installed, or has another upstream with one of the names.
    """
    prepare()
    try:
        with quietly():
            from s3prl import hub
    except ModuleNotFoundError as error:
        raise UserError(f's3prl: {error.name} is not installed. Run tools/install.sh --extras "s3prl".') from error
    from speechclip.upstream.hubconf import ENTRIES

    for name, entry in ENTRIES.items():
        if getattr(hub, name, entry) is not entry:
            raise UserError(
                f"s3prl.hub.{name}: this s3prl already has an upstream with that name. Remove the other one."
            )
    for name, entry in ENTRIES.items():
        setattr(hub, name, entry)
    return sorted(ENTRIES)
