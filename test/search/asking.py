"""Shared parts of the search tests: an index of the mini corpus, a model, and a recording of speech."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fixtures import whole_model

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.search.build import index_files
from speechclip.search.index import ImageIndex
from speechclip.search.items import Duplicate, Items
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


def with_recordings(world: World) -> ImageIndex:
    """Return the index of the world with two windows of the query after the pictures."""
    old, spans = world.index, [(0.0, 1.0), (1.25, 2.0)]
    ids = [*old.ids, *(f"talks/query.flac#t={start:g},{end:g}" for start, end in spans)]
    speech = world.model.encode_speech(world.query).cpu().numpy().repeat(2, axis=0)
    info = dataclasses.replace(old.info, count=len(ids), recordings=2)
    items = Items(ids, [*old.files, *[str(world.query)] * 2], spans, {0: (Duplicate("copy.png", "/copy.png"),)})
    vectors = np.concatenate([np.asarray(old.vectors, dtype=np.float32), speech])
    return ImageIndex(old.folder, info, items, vectors, None, "with")


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine and yield "127.0.0.1:<port>"."""
    from speechclip.search.connections import listen_on, make_server

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


def request(
    address: str, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request and return status, headers and body. The path is sent as it is."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named, encode_chunked="Transfer-Encoding" in named)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def error_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Return status and error message of a response."""
    return answer[0], json.loads(answer[2])["error"]
