"""The corpora by name.

A corpus is a module of this package that defines ``prepare_<name>(corpus_dir, data_dir, limits)``, its default
``LIMITS`` and ``find_parts(corpus_dir)``. A corpus that can be downloaded also defines its ``SOURCES``. The corpus has
the name of the module; no list has to be edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speechclip.data.corpora
from speechclip.common.errors import UserError
from speechclip.data.corpora.download import RemoteFile, download
from speechclip.data.corpora.preparation import Limits, Summary


@dataclass(frozen=True)
class Corpus:
    """The public parts of a corpus module.

    Attributes:
        name: of the corpus and of its module.
        prepare: write data directories: (corpus folder, folder of the data directories, limits) -> summary.
        limits: the default limits of ``prepare``.
        find_parts: raise a UserError if a corpus folder lacks a part.
        sources: the files that ``download`` gets; empty if the corpus cannot be downloaded.
    """

    name: str
    prepare: Callable[[str, str, Limits], Summary]
    limits: Limits
    find_parts: Callable[[Path], Any]
    sources: tuple[RemoteFile, ...] = ()

    @property
    def download(self) -> Callable[[str, str], None] | None:
        """Download the parts that a folder lacks: (corpus folder, URL of a mirror or ""); None without sources.

        Raises:
            UserError: too little free space, or a part that no host provides.
        """
        if not self.sources:
            return None
        return lambda corpus_dir, mirror: download(self.sources, Path(corpus_dir), mirror=mirror)


def corpus_names() -> list[str]:
    """Return the names of all corpora, sorted."""
    names = sorted(item.name for item in pkgutil.iter_modules(speechclip.data.corpora.__path__))
    return [name for name in names if hasattr(_module(name), f"prepare_{name}")]


def find_corpus(name: str) -> Corpus:
    """Return a corpus by name.

    Raises:
        UserError: an unknown name.
    """
    known = corpus_names()
    if name not in known:
        raise UserError(f"unknown corpus '{name}' (known: {' '.join(known)})")
    module = _module(name)
    return Corpus(
        name,
        getattr(module, f"prepare_{name}"),
        module.LIMITS,
        module.find_parts,
        getattr(module, "SOURCES", ()),
    )


def _module(name: str) -> Any:
    return importlib.import_module(f"speechclip.data.corpora.{name}")
