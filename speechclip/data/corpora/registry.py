"""The corpora by name.

A corpus is a module of this package that defines ``prepare_<name>(corpus_dir, data_dir, limits)``, its default
``LIMITS``, its ``LICENCE`` and ``find_parts(corpus_dir)``. A corpus that can be downloaded also defines its
``SOURCES``, and a corpus whose recordings are published one by one defines ``download_more(corpus_dir, mirror)``, which
runs after them. ``PAGE`` and ``MTEB_TASKS`` describe the corpus as training data of a model in mteb. The corpus has the
name of the module; no list has to be edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
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
        licence: the terms of the corpus, for the card of a model that was trained on it.
        sources: the files that ``download`` gets; empty if the corpus cannot be downloaded.
        download_more: get the files that ``sources`` does not list: (corpus folder, URL of a mirror or "").
        page: where the corpus is published.
        mteb_tasks: the tasks of mteb that have training images of the corpus, or its other splits.
    """

    name: str
    prepare: Callable[[str, str, Limits], Summary]
    limits: Limits
    find_parts: Callable[[Path], Any]
    licence: str
    sources: tuple[RemoteFile, ...] = ()
    download_more: Callable[[Path, str], None] | None = None
    page: str = ""
    mteb_tasks: frozenset[str] = frozenset()

    @property
    def download(self) -> Callable[[str, str, Sequence[str]], None] | None:
        """Download the parts that a folder lacks; None without sources.

        The arguments are the corpus folder, the URL of a mirror or "", and words: only files with one of these words at
        the start of their names are downloaded. Without words, all are.

        Raises:
            UserError: too little free space, or a part that no host provides.
        """
        if not self.sources:
            return None

        def get(corpus_dir: str, mirror: str, only: Sequence[str] = ()) -> None:
            wanted = [item for item in self.sources if not only or item.name.startswith(tuple(only))]
            if not wanted:
                names = ", ".join(item.name for item in self.sources)
                raise UserError(f"{self.name}: no file begins with {' or '.join(only)} (files: {names}). Add it.")
            download(wanted, Path(corpus_dir), mirror=mirror)
            if self.download_more is not None:
                self.download_more(Path(corpus_dir), mirror)

        return get


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
        raise UserError(f"unknown corpus '{name}' (known: {' '.join(known)}). Choose a known one.")
    module = _module(name)
    return Corpus(
        name,
        getattr(module, f"prepare_{name}"),
        module.LIMITS,
        module.find_parts,
        module.LICENCE,
        getattr(module, "SOURCES", ()),
        getattr(module, "download_more", None),
        getattr(module, "PAGE", ""),
        getattr(module, "MTEB_TASKS", frozenset()),
    )


def _module(name: str) -> Any:
    return importlib.import_module(f"speechclip.data.corpora.{name}")
