"""Shared parts of the search tests: an index of the mini corpus, a model, and a recording of speech."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixtures import whole_model

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.search.build import index_files
from speechclip.search.index import ImageIndex
from speechclip.search.sources import Sources, find_images

MINI = Path(__file__).resolve().parents[2] / "egs" / "mini" / "local"


@dataclass(frozen=True)
class World:
    """A model, an index and a query.

    Attributes:
        folder: holds ``best`` (the model), ``idx`` (the index) and ``query.flac``.
        model: the model.
        index: the index.
        query: a caption, spoken by the voice of the mini corpus.
    """

    folder: Path
    model: Any
    index: ImageIndex
    query: Path


def make_world(folder: Path, head: str = "cascaded") -> World:
    """Index six scenes of the mini corpus with a model of random weights, and record a caption."""
    sys.path.insert(0, str(MINI))
    try:
        import generate

        generate.generate(folder / "corpus", 0, {"train": 1, "dev": 1, "test": 6}, 1, 1)
    finally:
        sys.path.remove(str(MINI))
    network, config = whole_model(folder, head)
    before = Path.cwd()
    os.chdir(folder)  # the checkpoint names its encoders relative to this folder
    try:
        save_checkpoint(Path("best"), network, network.trained_state(), config, {"seed": 0, "trained": 1})
    finally:
        os.chdir(before)
    images = {name: path for name, path in find_images(folder / "corpus" / "images").items() if "test" in name}
    model = SpeechCLIP(network)
    index_files(model, folder / "best", Sources(images=images), folder / "idx")
    spoken = sorted((folder / "corpus" / "audio").rglob("*test*.flac"))[0]
    shutil.copy(spoken, folder / "query.flac")
    return World(folder, model, ImageIndex.open(folder / "idx"), folder / "query.flac")


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine and yield "127.0.0.1:<port>"."""
    from speechclip.search.serve import listen_on, make_server

    with listen_on("127.0.0.1", 0) as bound:
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.02)
        try:
            yield f"127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
