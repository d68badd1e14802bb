"""The server: queries by text, picture and item, a replaced index, a proxy, and clients that do not read."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from asking import World, error_of, request, serving, with_recordings
from PIL import Image

pytest.importorskip("starlette", reason="extra 'search' is not installed")
pytest.importorskip("uvicorn", reason="extra 'search' is not installed")

from speechclip.search import connections  # noqa: E402
from speechclip.search.build import index_files  # noqa: E402
from speechclip.search.index import ImageIndex  # noqa: E402
from speechclip.search.query import ask_like  # noqa: E402
from speechclip.search.serve import is_loopback, make_app  # noqa: E402
from speechclip.search.service import Limits  # noqa: E402
from speechclip.search.sources import Sources  # noqa: E402

LIMITS = Limits(seconds=6.0, size=300_000, top_k=4, neighbours=2)
JSON = "application/json"


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        yield where


def results(address: str, body: Any, kind: str, path: str = "/search") -> list[dict[str, Any]]:
    status, _, answer = request(address, "POST", path, body, Content_Type=kind)
    assert status == 200, answer
    found: list[dict[str, Any]] = json.loads(answer)["results"]
    return found


def expected(world: World, vector: Any) -> list[tuple[str, float]]:
    rows, cosines = world.index.search(np.asarray(vector, dtype=np.float32), LIMITS.top_k)
    return [(world.index.ids[row], round(float(cosine), 4)) for row, cosine in zip(rows[0], cosines[0])]


def test_server_searches_with_text(world: World, address: str) -> None:
    found = results(address, json.dumps({"text": "a red boat"}), JSON)
    assert [(e["id"], e["cosine"]) for e in found] == expected(world, world.model.encode_text("a red boat").cpu())


def test_server_searches_with_a_picture(world: World, address: str) -> None:
    path = Path(world.index.files[2])
    found = results(address, path.read_bytes(), "image/png")
    assert found[0]["id"] == world.index.ids[2] and found[0]["cosine"] == pytest.approx(1, abs=1e-3)
    assert [e["id"] for e in found] == [name for name, _ in expected(world, world.model.encode_image(path).cpu())]


def test_server_searches_with_an_item(world: World, address: str) -> None:
    found = results(address, json.dumps({"like": world.index.ids[3]}), JSON)
    assert [e["id"] for e in found] == [hit.id for hit in ask_like(world.index, 3, top_k=LIMITS.top_k).hits]
    assert world.index.ids[3] not in {e["id"] for e in found}


def test_server_plays_windows_of_recordings(world: World) -> None:
    index = with_recordings(world)
    with serving(make_app(world.model, index, LIMITS)) as where:
        assert json.loads(request(where, "GET", "/info")[2])["recordings"] == 2
        found = results(where, world.query.read_bytes(), "audio/flac")
        heard = [entry for entry in found if entry["kind"] == "recording"]
        assert len(found) == 6 and [entry["span"] for entry in heard] == [[0.0, 1.0], [1.25, 2.0]]
        assert all(entry["recording"] is None for entry in found if entry["kind"] == "image")
        status, headers, wav = request(where, "GET", f"/{heard[1]['recording']}")
        assert (status, headers["content-type"]) == (200, "audio/wav")
        samples, rate = soundfile.read(io.BytesIO(wav))
        expected_samples, _ = soundfile.read(world.query)
        assert np.abs(samples - expected_samples[int(1.25 * rate) : 2 * rate]).max() < 1e-4
        for path in ("recordings/with/0", "recordings/with/8", "recordings/other/7", "recordings/with/x"):
            assert request(where, "GET", f"/{path}")[0] == 404  # a picture, no row, another index, no number


@pytest.mark.parametrize(("body", "reason"), [
    (b"", "the query is empty. Speak, type, or choose a file."), (b"{", "not a query."), (b"[" * 9000, "not a query."),
    (b"7", "not a query."), (b'{"text": 7}', "not a query."), (b'{"text": "a", "like": "b"}', "not a query."),
    (b'{"other": "a"}', "not a query."), (b'{"text": " "}', "the text is empty. Type some words."),
    (b"{" + b" " * 20_000 + b"}", "not a query."),
    (json.dumps({"text": "a" * 1001}).encode(), "the text has 1001 characters. Use at most 1000."),
    (b'{"text": "\\ud800"}', "the text is not valid Unicode"), (b'{"like": "no such"}', "this item is no longer in"),
    (b'{"like": "\\udcff"}', "this item is no longer in"),
])  # fmt: skip
def test_server_explains_bad_queries(address: str, body: bytes, reason: str) -> None:
    status, said = error_of(request(address, "POST", "/search", body, Content_Type=JSON))
    assert status == 422 and said.startswith(reason) and said.endswith(".")


def test_server_explains_bad_pictures(address: str, monkeypatch: Any) -> None:
    def upload(content: bytes) -> tuple[int, str]:
        return error_of(request(address, "POST", "/search", content, Content_Type="image/*"))

    status, said = upload(b"hello")
    assert status == 422 and said.startswith("the picture: ") and "head" not in said
    buffer = io.BytesIO()
    Image.new("L", (9000, 6000)).save(buffer, "PNG")
    assert upload(buffer.getvalue()) == (
        422,
        "the picture: 9000x6000 pixels. At most 50 megapixels are read. Shrink it.",
    )


def test_server_without_clip_offers_no_text(world: World, monkeypatch: Any) -> None:
    monkeypatch.setitem(world.model.network._modules, "clip", None)
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        known = json.loads(request(where, "GET", "/info")[2])
        assert (known["text"], known["pictures"]) == (False, False)
        for body, kind in ((b'{"text": "a"}', JSON), (b"x", "image/png")):
            status, said = error_of(request(where, "POST", "/search", body, Content_Type=kind))
            assert status == 422 and said == "this model searches only with recordings. Speak, or choose a recording."


def test_server_names_paths_only_on_this_machine(world: World, address: str) -> None:
    query = json.dumps({"text": "a"})
    assert results(address, query, JSON)[0]["file"] in world.index.files
    for options in ({"allowed_hosts": ["search.example"]}, {"host": "0.0.0.0"}):
        with serving(make_app(world.model, world.index, LIMITS, **options)) as where:
            body = request(where, "POST", "/search", query, Content_Type=JSON)[2]
            assert (
                b'"results"' in body
                and b'"file"' not in body
                and b"_files" not in body
                and str(world.folder).encode() not in body
            )
    assert [is_loopback(name) for name in ("127.0.0.1", "::1", "localhost", "192.0.2.1", "example")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_server_opens_a_replaced_index(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.folder / "idx", tmp_path / "idx")
    index = ImageIndex.open(tmp_path / "idx")
    names = sorted(world.index.ids)
    new = {f"new/{name}": Path(world.index.files[world.index.ids.index(name)]) for name in names[:5]}
    query = json.dumps({"text": "a boat"})
    with serving(make_app(world.model, index, LIMITS)) as where:
        before = results(where, query, JSON)
        index_files(world.model, world.folder / "best", Sources(images=new), tmp_path / "idx")
        assert request(where, "GET", f"/{before[0]['thumbnail']}")[0] == 404  # the picture of another index
        after = results(where, query, JSON)
        assert {e["id"] for e in before} <= set(names) and {e["id"] for e in after} <= set(new)
        assert request(where, "GET", f"/{after[0]['thumbnail']}")[0] == 200
        assert json.loads(request(where, "GET", "/info")[2])["images"] == 5
        shutil.copytree(tmp_path / "idx", tmp_path / "damaged")
        (tmp_path / "damaged" / "index.json").write_text("{}")
        (tmp_path / "idx").rename(tmp_path / "away")
        (tmp_path / "damaged").rename(tmp_path / "idx")  # the server keeps the index that it has
        assert results(where, query, JSON)[0]["id"] == after[0]["id"]
        shutil.rmtree(tmp_path / "idx")
        assert results(where, query, JSON)[0]["id"] == after[0]["id"]


@pytest.mark.parametrize("prefix", ["/search", "/tools/by-voice"])
def test_server_works_below_a_path(world: World, prefix: str) -> None:
    with serving(make_app(world.model, world.index, LIMITS, path_prefix=prefix)) as where:
        status, headers, body = request(where, "GET", f"{prefix}/")
        assert status == 200 and b"page.js" in body
        status, headers, _ = request(where, "GET", prefix)
        assert status in (301, 307) and headers["location"].endswith(f"{prefix}/")
        assert request(where, "GET", f"{prefix}/page.css")[1]["content-type"].startswith("text/css")
        found = results(where, json.dumps({"text": "a"}), JSON, f"{prefix}/search")
        assert request(where, "GET", f"{prefix}/{found[0]['thumbnail']}")[0] == 200
        assert [request(where, "GET", path)[0] for path in ("/", "/info", f"{prefix}/x", f"{prefix}{prefix}/info")] == [
            404
        ] * 4


def test_server_closes_a_client_that_does_not_read(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.3)
    requests = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        host, port = where.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.setblocking(False)
            closed, end = False, time.monotonic() + 20
            while not closed and time.monotonic() < end:  # thousands of requests, and no answer is read
                try:
                    client.send(requests)
                except BlockingIOError:
                    time.sleep(0.05)
                except (ConnectionResetError, BrokenPipeError):
                    closed = True
        assert closed
        assert request(where, "GET", "/info")[0] == 200


def test_server_answers_with_names_of_any_character(world: World) -> None:
    names = ["a\nb.png", '"quoted",.png', "<b>.png", "ä/日本.png", os.fsdecode(b"z\xff.png"), "\u202egnp.exe"]
    index = ImageIndex.open(world.folder / "idx")
    index.ids[:] = names
    with serving(make_app(world.model, index, Limits(top_k=6))) as where:
        for name in names:
            found = results(where, json.dumps({"like": name}), JSON)
            assert found[0]["id"] in names and {e["id"] for e in found} | {name} == set(names)
