"""The server: what it answers, what it refuses, and that no file but the index's thumbnails and the page leaves it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from asking import World, serving

pytest.importorskip("starlette", reason="extra 'search' is not installed")
pytest.importorskip("uvicorn", reason="extra 'search' is not installed")

from speechclip.bin.serve import main  # noqa: E402
from speechclip.common.errors import UserError  # noqa: E402
from speechclip.search import serve  # noqa: E402
from speechclip.search.query import ask  # noqa: E402
from speechclip.search.serve import Limits, Service, listen_on, make_app, peaks  # noqa: E402

LIMITS = Limits(seconds=6.0, size=300_000, top_k=4, neighbours=2)


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        yield where


def request(
    address: str, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer; the path goes out as it is, dots and all."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named, encode_chunked="Transfer-Encoding" in named)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def error_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[2])["error"]


def test_a_query_is_answered_as_the_library_answers_it(world: World, address: str) -> None:
    status, _, body = request(address, "POST", "/search", world.query.read_bytes())
    found = json.loads(body)
    wanted = ask(world.model, world.index, world.query, top_k=4, neighbours=2).as_dict()
    assert status == 200
    assert found["keywords"] == wanted["keywords"]
    assert [(e["rank"], e["id"], e["cosine"]) for e in found["results"]] == [
        (e["rank"], e["id"], e["cosine"]) for e in wanted["results"]
    ]
    assert set(found["results"][0]) == {"rank", "id", "cosine", "thumbnail"}  # and not where the image lies
    assert str(world.folder) not in body.decode()
    assert max(found["peaks"]) == 1 and len(found["peaks"]) == serve.PEAKS
    for entry in found["results"]:
        status, headers, picture = request(address, "GET", f"/{entry['thumbnail']}")
        row = world.index.ids.index(entry["id"])
        thumbnail = world.index.thumbnail(row)
        assert thumbnail is not None
        assert (status, headers["content-type"], picture) == (200, "image/jpeg", thumbnail.read_bytes())


def test_the_page_may_load_nothing_from_elsewhere(address: str) -> None:
    for path in serve.PAGE:
        status, headers, body = request(address, "GET", path)
        assert status == 200
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in body
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
    assert json.loads(request(address, "GET", "/info")[2]) == {
        "images": 6, "head": "cascaded", "keywords": True, "max_seconds": 6.0, "max_bytes": 300_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "/index.json", "/items.json", "/vectors.npy", "/thumbnails/../index.json", "/thumbnails/..%2findex.json",
        "/thumbnails/%2e%2e/index.json", "/../../../../../../etc/passwd", "//etc/passwd", "/thumbnails//etc/passwd",
        "/thumbnails/0000/0000000.jpg", "/thumbnails/0%00", "/thumbnails/6", "/thumbnails/-1", "/thumbnails/",
        "/thumbnails/999999999999", "/page/page.js", "/page.js/../../serve.py", "/serve.py", "/file=/etc/passwd",
        "/static/../index.json", "/search",
    ],
)  # fmt: skip
def test_no_other_file_is_served(address: str, path: str) -> None:
    status, headers, body = request(address, "GET", path)
    assert status in (404, 405)
    assert b"root:" not in body and b'"ids"' not in body and len(body) < 100
    assert "content-security-policy" in headers


def test_a_thumbnail_that_is_a_link_out_of_the_index_is_not_served(world: World, address: str) -> None:
    thumbnail = world.index.thumbnail(5)
    assert thumbnail is not None
    kept = thumbnail.read_bytes()
    thumbnail.unlink()
    thumbnail.symlink_to(world.query)
    assert request(address, "GET", "/thumbnails/5")[0] == 404
    thumbnail.unlink()
    thumbnail.write_bytes(kept)
    assert request(address, "GET", "/thumbnails/5")[0] == 200


def test_uploads_are_limited_in_size_before_they_are_read(address: str) -> None:
    assert error_of(request(address, "POST", "/search", b"x" * 300_001)) == (413, "larger than 0.3 MB")
    parts = (b"x" * 100_000 for _ in range(4))
    assert error_of(request(address, "POST", "/search", parts, Transfer_Encoding="chunked"))[0] == 413
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.putrequest("POST", "/search")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders(b"x")  # the rest is never sent, and not waited for
    assert connection.getresponse().status == 413
    connection.close()


def test_bad_recordings_are_explained_without_a_path(tmp_path: Path, world: World, address: str) -> None:
    def upload(samples: np.ndarray, rate: int = 16000, **options: str) -> tuple[int, str]:
        soundfile.write(tmp_path / "x", samples, rate, format="WAV", **options)
        return error_of(request(address, "POST", "/search", (tmp_path / "x").read_bytes()))

    tone = np.sin(np.arange(7 * 8000)).astype(np.float32)
    assert upload(tone, 8000) == (422, "the recording: 7.0 s long, a query may have 6 s")
    assert upload(np.zeros(8000)) == (422, "the recording: silence: every sample is zero. Record it again.")
    assert upload(tone[:9000].reshape(-1, 9)) == (422, "the recording: 9 channels at 16000 Hz, 8 at 192000 at most")
    assert upload(np.full(800, np.nan), subtype="FLOAT") == (422, "the recording: NaN or infinite samples. Write the file again.")
    whole = world.query.read_bytes()
    status, reason = error_of(request(address, "POST", "/search", whole[: len(whole) // 2]))
    assert status == 422 and reason.startswith("the recording: truncated or corrupt audio")
    assert error_of(request(address, "POST", "/search", b"hello")) == (
        422, "the recording: not readable as audio (Format not recognised). Convert the file to wav or flac.",
    )  # fmt: skip
    assert error_of(request(address, "POST", "/search", b"")) == (422, "an empty recording")


def test_nothing_of_a_recording_is_kept(world: World, address: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for body in (world.query.read_bytes(), b"hello"):
        request(address, "POST", "/search", body)
        assert list(tmp_path.iterdir()) == []


def test_other_sites_and_other_names_are_refused(world: World, address: str) -> None:
    port, query = address.split(":")[1], world.query.read_bytes()
    assert request(address, "GET", "/info", Host=f"localhost:{port}")[0] == 200
    assert request(address, "GET", "/info", Host=f"evil.example:{port}")[0] == 400  # a name that was made to point here
    assert request(address, "POST", "/search", query, Origin=f"http://{address}")[0] == 200
    assert request(address, "POST", "/search", query, Origin="http://evil.example")[0] == 403
    assert request(address, "POST", "/search", query, Sec_Fetch_Site="cross-site")[0] == 403


def test_queries_wait_for_one_another_but_not_without_end(world: World, monkeypatch: Any) -> None:
    service = Service(world.model, world.index, LIMITS)
    inside, go, at_once = threading.Event(), threading.Event(), []

    def slow(path: Path) -> dict[str, Any]:
        at_once.append(1)
        inside.set()
        go.wait(30)
        return {}

    monkeypatch.setattr(service, "_answer", slow)
    threads = [threading.Thread(target=service.answer, args=(b"x",)) for _ in range(serve.WAITING + 1)]
    for thread in threads:
        thread.start()
    assert inside.wait(30)
    deadline = time.monotonic() + 30
    while service._waiting._value:  # until all have come in
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(at_once) == 1
    with pytest.raises(serve.HTTPException, match="too many queries"):
        service.answer(b"x")
    go.set()
    for thread in threads:
        thread.join(30)
    assert len(at_once) == serve.WAITING + 1
    assert service.answer(b"x") == {}


def test_it_listens_on_this_machine_alone_unless_told_otherwise() -> None:
    with listen_on("127.0.0.1", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
        bound.listen()
        taken = listen_on("127.0.0.1", bound.getsockname()[1])
        with pytest.raises(UserError, match=r"--port \d+: cannot listen there: Address already in use"):
            taken.__enter__()
    with pytest.raises(UserError, match="--host no.such.host.invalid --port 0: cannot listen there"):
        listen_on("no.such.host.invalid", 0).__enter__()


def test_the_command_serves_on_loopback_by_default(world: World, monkeypatch: Any, capsys: Any) -> None:
    seen: list[tuple[Any, socket.socket, str]] = []
    monkeypatch.setattr(serve, "run", lambda app, bound: seen.append((app, bound, bound.getsockname()[0])))
    main(["--index", str(world.folder / "idx"), "--port", "0", "--device", "cpu"])
    assert [where for _, _, where in seen] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--port", "70000"], "--port: 70000 is not 0 to 65535"),
        (["--max_seconds", "0"], "--top_k and --neighbours are at least 1, --max_seconds"),
        (["--port", "0"], "nowhere/index.json: no such file"),
    ],
)
def test_mistakes_end_in_one_line(capsys: Any, words: list[str], reason: str) -> None:
    with pytest.raises(SystemExit):
        main(["--index", "nowhere", *words])
    said = capsys.readouterr().err
    assert said.startswith(f"error: {reason}") and said.count("\n") == 1


def test_peaks_by_hand() -> None:
    assert peaks(np.array([0.0, -0.5, 0.25])) == [0, 1, 0.5]
    long = np.zeros(serve.PEAKS * 10)
    long[25], long[-1] = -0.4, 0.8
    found = peaks(long)
    assert len(found) == serve.PEAKS and found[2] == 0.5 and found[-1] == 1 and sum(found) == 1.5
