"""The server: its answers and refusals, its limits, and that it serves only the page and the thumbnails."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from asking import World, error_of, request, serving

pytest.importorskip("starlette", reason="extra 'search' is not installed")
pytest.importorskip("uvicorn", reason="extra 'search' is not installed")

from speechclip.bin.serve import main  # noqa: E402
from speechclip.common.errors import UserError  # noqa: E402
from speechclip.search import connections, serve, service  # noqa: E402
from speechclip.search.connections import listen_on  # noqa: E402
from speechclip.search.query import ask  # noqa: E402
from speechclip.search.serve import make_app  # noqa: E402
from speechclip.search.service import Limits, Query, Service, peaks  # noqa: E402

LIMITS = Limits(seconds=6.0, size=300_000, top_k=4, neighbours=2)


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        yield where


def test_server_answers_as_the_library_does(world: World, address: str) -> None:
    status, _, body = request(address, "POST", "/search", world.query.read_bytes())
    found = json.loads(body)
    wanted = ask(world.model, world.index, world.query, top_k=4, neighbours=2).as_dict()
    assert status == 200
    assert found["keywords"] == wanted["keywords"]
    assert [(e["rank"], e["id"], e["cosine"]) for e in found["results"]] == [
        (e["rank"], e["id"], e["cosine"]) for e in wanted["results"]
    ]
    assert [e["file"] for e in found["results"]] == [e["file"] for e in wanted["results"]]
    assert max(found["peaks"]) == 1 and len(found["peaks"]) == service.PEAKS
    for entry in found["results"]:
        status, headers, picture = request(address, "GET", f"/{entry['thumbnail']}")
        row = world.index.ids.index(entry["id"])
        thumbnail = world.index.thumbnail(row)
        assert thumbnail is not None
        assert (status, headers["content-type"], picture) == (200, "image/jpeg", thumbnail.read_bytes())


def test_page_loads_nothing_from_other_hosts(address: str) -> None:
    for path in serve.PAGE:
        status, headers, body = request(address, "GET", path)
        assert status == 200
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in body
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
    assert json.loads(request(address, "GET", "/info")[2]) == {
        "images": 6, "recordings": 0, "keywords": True, "text": True, "pictures": True, "min_seconds": 0.2,
        "max_seconds": 6.0, "max_bytes": 300_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "/index.json", "/items.json", "/vectors.npy", "/thumbnails/../index.json", "/thumbnails/..%2findex.json",
        "/thumbnails/%2e%2e/index.json", "/../../../../../../etc/passwd", "//etc/passwd", "/thumbnails//etc/passwd",
        "/thumbnails/0000/0000000.jpg", "/thumbnails/0", "/thumbnails/TOKEN/0%00", "/thumbnails/TOKEN/6",
        "/thumbnails/TOKEN/-1", "/thumbnails/TOKEN/", "/thumbnails/TOKEN/999999999999", "/thumbnails/0/0",
        f"/thumbnails/TOKEN/{'9' * 4301}", "/thumbnails/TOKEN/%C2%B2", "/thumbnails/TOKEN/1.0",
        "/thumbnails//0", "/page/page.js", "/page.js/../../serve.py", "/serve.py", "/file=/etc/passwd",
        "/static/../index.json", "/search",
    ],
)  # fmt: skip
def test_server_serves_no_other_file(world: World, address: str, path: str) -> None:
    path = path.replace("TOKEN", world.index.version)
    status, headers, body = request(address, "GET", path)
    assert status in (404, 405)
    assert b"root:" not in body and b'"ids"' not in body and len(body) < 100
    assert "content-security-policy" in headers


def test_server_refuses_a_thumbnail_outside_the_index(world: World, address: str) -> None:
    thumbnail = world.index.thumbnail(5)
    assert thumbnail is not None
    where = f"/thumbnails/{world.index.version}/5"
    kept = thumbnail.read_bytes()
    thumbnail.unlink()
    thumbnail.symlink_to(world.query)
    assert request(address, "GET", where)[0] == 404
    thumbnail.unlink()
    thumbnail.write_bytes(kept)
    assert request(address, "GET", where)[0] == 200


def test_server_limits_the_size_of_uploads(address: str) -> None:
    assert error_of(request(address, "POST", "/search", b"x" * 300_001)) == (
        413,
        "larger than 0.3 MB. Choose a smaller file.",
    )
    parts = (b"x" * 100_000 for _ in range(4))
    assert error_of(request(address, "POST", "/search", parts, Transfer_Encoding="chunked"))[0] == 413
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.putrequest("POST", "/search")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders(b"x")  # the rest is never sent
    assert connection.getresponse().status == 413
    connection.close()


def test_server_explains_bad_recordings(tmp_path: Path, world: World, address: str) -> None:
    def upload(samples: np.ndarray, rate: int = 16000, **options: str) -> tuple[int, str]:
        soundfile.write(tmp_path / "x", samples, rate, format="WAV", **options)
        return error_of(request(address, "POST", "/search", (tmp_path / "x").read_bytes()))

    def check(answer: tuple[int, str], reason: str) -> None:
        assert answer[0] == 422 and answer[1].startswith(f"the recording: {reason}")
        assert answer[1].endswith(". Speak again, or choose another recording.")

    tone = np.sin(np.arange(7 * 8000)).astype(np.float32)
    check(upload(tone, 8000), "7.0 s long. A query has at most 6 s.")
    check(upload(tone[:1]), "0.000 s long. A query has at least 0.2 s.")
    check(upload(tone[:960]), "0.060 s long. A query has at least 0.2 s.")
    check(upload(np.zeros(8000)), "silence: every sample is zero")
    check(upload(tone[:9000].reshape(-1, 9)), "9 channels at 16000 Hz. At most 8 channels at 192000 Hz are supported.")
    check(upload(np.full(8000, np.nan), subtype="FLOAT"), "NaN or infinite samples")
    whole = world.query.read_bytes()
    check(error_of(request(address, "POST", "/search", whole[: len(whole) // 2])), "truncated or corrupt audio")
    check(error_of(request(address, "POST", "/search", b"hello")), "not readable as audio (Format not recognised)")
    assert error_of(request(address, "POST", "/search", b"")) == (
        422,
        "the query is empty. Speak, type, or choose a file.",
    )


def test_server_keeps_no_recording(world: World, address: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for body in (world.query.read_bytes(), b"hello"):
        request(address, "POST", "/search", body)
        assert list(tmp_path.iterdir()) == []


def test_server_refuses_other_sites_and_host_names(world: World, address: str) -> None:
    port, query = address.split(":")[1], world.query.read_bytes()
    assert request(address, "GET", "/info", Host=f"localhost:{port}")[0] == 200
    assert request(address, "GET", "/info", Host=f"evil.example:{port}")[0] == 400  # DNS rebinding
    assert request(address, "POST", "/search", query, Origin=f"http://{address}")[0] == 200
    assert request(address, "POST", "/search", query, Origin="http://evil.example")[0] == 403
    assert request(address, "POST", "/search", query, Sec_Fetch_Site="cross-site")[0] == 403


def test_server_answers_all_queries_one_at_a_time(world: World, monkeypatch: Any) -> None:
    at_once, most = [0], [0]
    answer = Service.answer_query

    def counted(self: Service, query: Query) -> dict[str, Any]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        try:
            return answer(self, query)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(Service, "answer_query", counted)
    query = world.query.read_bytes()
    with serving(make_app(world.model, world.index, LIMITS)) as where, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: request(where, "POST", "/search", query), range(24)))
    assert [status for status, _, _ in answers] == [200] * 24
    assert most == [1]


@pytest.mark.parametrize(("name", "value", "refusals"), [
    ("QUEUE_SECONDS", 0.2, 2), ("MAX_WAITING", 1, 1), ("MAX_UPLOADS", 0, 3),
])  # fmt: skip
def test_busy_server_answers_503_with_retry_after(
    world: World, monkeypatch: Any, name: str, value: float, refusals: int
) -> None:
    go = threading.Event()
    monkeypatch.setattr(Service, "answer_query", lambda self, query: {"done": go.wait(60)})
    monkeypatch.setattr(service, name, value)
    query = world.query.read_bytes()
    with serving(make_app(world.model, world.index, LIMITS)) as where, ThreadPoolExecutor(3) as pool:
        answers = as_completed([pool.submit(request, where, "POST", "/search", query) for _ in range(3)])
        for answer in itertools.islice(answers, refusals):
            status, headers, body = answer.result()
            assert status == 503 and headers["retry-after"] == str(service.RETRY_SECONDS)
            assert json.loads(body)["error"] == "too many queries at the same time. Try again in a moment."
        go.set()
        assert [answer.result()[0] for answer in answers] == [200] * (3 - refusals)


def _closed_after(address: str, sent: bytes, seconds: float) -> bytes:
    """Send part of a request and return the bytes that come until the server closes the connection."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as client:
        client.sendall(sent)
        received = b""
        while part := client.recv(4096):
            received += part
    return received


def test_server_closes_connections_without_a_request(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(service, "BODY_SECONDS", 0.3)
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        assert _closed_after(where, b"", 10) == b""
        assert _closed_after(where, b"GET /info HTTP/1.1\r\nHost: loc", 10) == b""
        whole = b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n"
        received = _closed_after(where, whole + b"GET /info HT", 10)  # also after the first request of a connection
        assert received.startswith(b"HTTP/1.1 200 OK") and received.count(b"HTTP/1.1") == 1
        head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        assert _closed_after(where, head + b"x", 10).startswith(b"HTTP/1.1 408 ")


def test_server_closes_the_oldest_idle_connection(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    with serving(make_app(world.model, world.index, LIMITS)) as where, contextlib.ExitStack() as stack:
        host, port = where.split(":")
        idle = [stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(12)]
        assert request(where, "POST", "/search", world.query.read_bytes())[0] == 200
        assert [client.recv(1) for client in idle[:8]] == [b""] * 8  # closed
        idle[-1].sendall(b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle[-1].recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize(
    ("files", "allowed"),
    [(1024, 924), (20_000, connections.MAX_CONNECTIONS), (50, 1), (-1, connections.MAX_CONNECTIONS)],
)
def test_max_connections_follow_the_open_files(monkeypatch: Any, files: int, allowed: int) -> None:
    monkeypatch.setattr(connections.resource, "getrlimit", lambda kind: (files, -1))  # -1: no limit
    assert connections.max_connections() == allowed


def test_disconnecting_client_causes_no_traceback(world: World, capfd: Any, caplog: Any) -> None:
    query = world.query.read_bytes()
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        host, port = where.split(":")
        head = f"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(query)}\r\n\r\n".encode()
        for sent in (head, head + query[:1000], head + query):
            with socket.create_connection((host, int(port)), timeout=10) as client:
                client.sendall(sent)
        assert request(where, "POST", "/search", query)[0] == 200  # the requests above were handled before
    assert "Traceback" not in capfd.readouterr().err and not [one for one in caplog.records if one.exc_info]


def test_server_finds_undecodable_file_names(world: World, monkeypatch: Any) -> None:
    name = os.fsdecode(b"z\xff.png")
    monkeypatch.setattr(world.index, "ids", [name] * len(world.index))
    with serving(make_app(world.model, world.index, LIMITS)) as where:
        status, _, body = request(where, "POST", "/search", world.query.read_bytes())
    assert status == 200 and json.loads(body)["results"][0]["id"] == name


def test_server_accepts_the_host_name_of_a_proxy(world: World) -> None:
    app = make_app(world.model, world.index, LIMITS, allowed_hosts=["search.example"])
    query = world.query.read_bytes()
    with serving(app) as where:
        assert request(where, "GET", "/info", Host="search.example")[0] == 200
        assert request(where, "POST", "/search", query, Origin="https://search.example")[0] == 200
        assert request(where, "POST", "/search", query, Origin="https://other.example")[0] == 403
        assert request(where, "POST", "/search", query, Origin="http://[")[0] == 403  # not an address


def test_listen_on_refuses_a_port_in_use() -> None:
    with listen_on("127.0.0.1", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
        bound.listen()
        taken = listen_on("127.0.0.1", bound.getsockname()[1])
        with pytest.raises(UserError, match=r"--port \d+: cannot listen there: Address already in use"):
            taken.__enter__()
    with pytest.raises(UserError, match="--host no.such.host.invalid --port 0: cannot listen there"):
        listen_on("no.such.host.invalid", 0).__enter__()


def test_serve_command_uses_loopback_by_default(world: World, monkeypatch: Any, capsys: Any) -> None:
    seen: list[tuple[Any, socket.socket, str]] = []
    monkeypatch.setattr(
        connections, "run", lambda app, bound, prefix: seen.append((app, bound, bound.getsockname()[0]))
    )
    main(["--index", str(world.folder / "idx"), "--port", "0", "--device", "cpu"])
    assert [where for _, _, where in seen] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--port", "many"], "argument --port: invalid int value: 'many'"),
        (["--top_k", "1.5"], "argument --top_k: invalid int value: '1.5'"),
        (["--path_prefix", "search"], "--path_prefix: search is not a path such as /search"),
        (["--path_prefix", "/a/../b"], "--path_prefix: /a/../b is not a path such as /search"),
        (
            ["--allowed_host", "a.example", "https://b.example/"],
            "--allowed_host: https://b.example/ is not a host name",
        ),
        (["--allowed_host", "a*.example"], "--allowed_host: a*.example is not a host name such as search.example.org"),
        (["--allowed_host", "a.example:8443"], "--allowed_host: a.example:8443 is not a host name"),
        (["--port", "70000"], "--port: 70000 is not 0 to 65535"),
        (["--top_k", "0"], "--top_k and --neighbours must be at least 1"),
        (["--max_seconds", "0"], "--max_seconds must be above 0 and at most 3600"),
        (["--max_seconds", "nan"], "--max_seconds must be above 0 and at most 3600"),
        (["--max_megabytes", "inf"], "--max_seconds must be above 0 and at most 3600"),
        (["--allowed_host", "a.example", "*.b.example", "[::1]", "--port", "0"], "nowhere/index.json: is missing"),
        (["--demo"], "either --index or --demo is needed"),
        (["--port", "0"], "nowhere/index.json: is missing"),
    ],
)
def test_serve_command_refuses_mistakes(capsys: Any, words: list[str], reason: str) -> None:
    with pytest.raises(SystemExit):
        main(["--index", "nowhere", *words])
    said = capsys.readouterr().err
    assert said.startswith(f"error: {reason}") and said.count("\n") == 1


def test_peaks_are_relative_to_the_largest() -> None:
    assert peaks(np.array([0.0, -0.5, 0.25])) == [0, 1, 0.5]
    long = np.zeros(service.PEAKS * 10)
    long[25], long[-1] = -0.4, 0.8
    found = peaks(long)
    assert len(found) == service.PEAKS and found[2] == 0.5 and found[-1] == 1 and sum(found) == 1.5
