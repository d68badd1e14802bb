"""Downloads from a server on this machine: resume, mirrors, checksums, free space, unpacking."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import re
import shutil
import ssl
import tarfile
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from speechclip.bin.download import main
from speechclip.common.errors import UserError
from speechclip.data.corpora import flickr8k
from speechclip.data.corpora.download import RemoteFile, download
from speechclip.data.corpora.registry import corpus_names, find_corpus
from speechclip.data.corpora.sources import ENCODERS, FORMS, find_encoder

BODY = bytes(range(256)) * 2000  # 512,000 bytes


class Server:
    """A local HTTP server: the files that it serves by path, and its faults."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []  # path, range
        self.cut_after: dict[str, int] = {}  # path: bytes that a connection sends before it ends
        self.cuts_left: dict[str, int] = {}
        self.ranges = True
        self.status: dict[str, int] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                server.requests.append((self.path, wanted))
                if self.path in server.status or self.path not in server.files:
                    self.send_error(server.status.get(self.path, 404))
                    return
                body = server.files[self.path]
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
                if start and start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                give = len(body) - start
                if server.cuts_left.get(self.path, 0) > 0:
                    server.cuts_left[self.path] -= 1
                    give = min(give, server.cut_after[self.path])
                self.wfile.write(body[start : start + give])

            def log_message(self, *words: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def checksum(body: bytes, kind: str = "sha256") -> str:
    return f"{kind}:{hashlib.new(kind, body).hexdigest()}"


def remote(*urls: str, **changes: Any) -> RemoteFile:
    return RemoteFile(**{
        "name": "file.bin", "urls": urls, "bytes": len(BODY), "leaves": ("file.bin",), "checksum": checksum(BODY),
        "about": "ask the publisher", **changes,
    })  # fmt: skip


def get(folder: Path, *remotes: RemoteFile) -> None:
    download(remotes, folder, pause=0.0)


def test_download_fetches_a_file_once(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.files["/file.bin"] = BODY
    get(tmp_path / "to", remote(f"{server.url}/file.bin", checksum=checksum(BODY, "md5")))
    assert (tmp_path / "to" / "file.bin").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["file.bin"]
    caplog.set_level(logging.INFO, "speechclip")
    caplog.clear()
    get(tmp_path / "to", remote(f"{server.url}/file.bin"))
    assert caplog.messages == ["file.bin: found"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_download_resumes_after_an_interruption(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.files["/file.bin"], server.ranges = BODY, ranges
    server.cut_after["/file.bin"], server.cuts_left["/file.bin"] = 200_000, 2 if ranges else 1
    get(tmp_path, remote(f"{server.url}/file.bin"))
    assert (tmp_path / "file.bin").read_bytes() == BODY
    asked = [wanted for _, wanted in server.requests]
    assert asked == (["", "bytes=200000-", "bytes=400000-"] if ranges else ["", "bytes=200000-"])


def test_download_resumes_after_a_kill(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = BODY
    (tmp_path / "file.bin.part").write_bytes(BODY[:123_456])
    get(tmp_path, remote(f"{server.url}/file.bin"))
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.requests == [("/file.bin", "bytes=123456-")]


def test_download_recognises_a_complete_part(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = BODY
    (tmp_path / "file.bin.part").write_bytes(BODY)
    get(tmp_path, remote(f"{server.url}/file.bin"))
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_download_does_not_mix_mirrors_without_checksum(server: Server, tmp_path: Path) -> None:
    server.files["/b/file.bin"] = BODY
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "file.bin.part.url").write_text(f"{server.url}/a/file.bin")
    get(tmp_path, remote(f"{server.url}/b/file.bin", checksum=""))
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_download_tries_mirrors_in_order(server: Server, tmp_path: Path) -> None:
    server.files["/c/file.bin"], server.files["/b/file.bin"] = BODY, b"wrong" * 1000
    server.status["/x/file.bin"] = 403
    urls = ["http://127.0.0.1:9/file.bin", *(f"{server.url}/{name}/file.bin" for name in "xabc")]
    get(tmp_path, remote(*urls))
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert [path for path, _ in server.requests] == [f"/{name}/file.bin" for name in "xabc"]


def test_download_lists_files_that_no_host_provides(server: Server, tmp_path: Path) -> None:
    server.files["/b/file.bin"], server.files["/other"] = BODY[:-1], BODY
    first = remote(f"{server.url}/a/file.bin", f"{server.url}/b/file.bin")
    second = remote(f"{server.url}/other", name="other", leaves=("other",))
    with pytest.raises(UserError) as caught:
        get(tmp_path / "to", first, second)
    message = str(caught.value)
    assert f"{server.url}/a/file.bin: HTTP status 404" in message and "its checksum is not sha256:" in message
    assert f"Put file.bin into {tmp_path / 'to'} yourself (ask the publisher)." in message and "\n" not in message
    assert (tmp_path / "to" / "other").read_bytes() == BODY  # the other file was downloaded
    assert not (tmp_path / "to" / "file.bin").exists()


def test_download_gives_up_without_progress(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = BODY
    server.cut_after["/file.bin"], server.cuts_left["/file.bin"] = 0, 100
    with pytest.raises(UserError, match="no host provides it"):
        get(tmp_path, remote(f"{server.url}/file.bin"))
    assert 2 <= len(server.requests) <= 6


class Breaking:
    """A response that fails after its first part."""

    def __init__(self, response: Any, error: OSError) -> None:
        self.response, self.error, self.left = response, error, 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.response, name)

    def __enter__(self) -> Breaking:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()

    def read(self, _: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return bytes(self.response.read(100_000))


def breaking(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """Let the first request of each address fail with ``error``."""
    real, seen = urllib.request.urlopen, set[str]()

    def urlopen(request: urllib.request.Request, timeout: float) -> Any:
        response = real(request, timeout=timeout)
        first = request.full_url not in seen
        seen.add(request.full_url)
        return Breaking(response, error) if first else response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


@pytest.mark.parametrize(
    "error",
    [ssl.SSLError(1, "decryption failed or bad record mac"), OSError(errno.EHOSTUNREACH, "no route"), OSError("cut")],
    ids=["tls", "no route", "no number"],
)
def test_download_resumes_after_a_network_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    server.files["/file.bin"] = BODY
    breaking(monkeypatch, error)
    get(tmp_path, remote(f"{server.url}/file.bin"))
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert [wanted for _, wanted in server.requests] == ["", "bytes=100000-"]


def test_download_names_the_file_of_a_disk_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/file.bin"] = BODY
    breaking(monkeypatch, OSError(errno.EIO, "the disk's own words"))
    with pytest.raises(OSError, match="Input/output error") as caught:
        get(tmp_path, remote(f"{server.url}/file.bin"))
    assert caught.value.filename == str(tmp_path / "file.bin.part") and len(server.requests) == 1


def test_download_checks_the_free_space_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/file.bin"] = BODY
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_500_000_000))
    archive = remote(f"{server.url}/file.bin", bytes=1_000_000_000, unpacked=2_000_000_000, into="", leaves=("x",))
    with pytest.raises(UserError, match=r"file\.bin need 3\.0 GB, 2\.5 GB are free"):
        get(tmp_path, archive)
    assert server.requests == []


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def tarred(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_download_unpacks_next_to_existing_files(server: Server, tmp_path: Path, pack: Any) -> None:
    server.files["/a"] = pack({"Images/1.jpg": "one", "Images/sub/2.jpg": "two"})
    (tmp_path / "in" / "Images").mkdir(parents=True)
    (tmp_path / "in" / "Images" / "mine.txt").write_text("kept")
    get(tmp_path, remote(f"{server.url}/a", checksum="", into="in", leaves=("in/Images/sub/2.jpg",)))
    assert (tmp_path / "in/Images/1.jpg").read_text() == "one" and (
        tmp_path / "in/Images/mine.txt"
    ).read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]  # the archive is removed


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_download_refuses_paths_outside_of_the_folder(server: Server, tmp_path: Path, pack: Any) -> None:
    server.files["/a"] = pack({"good": "x", "../../evil": "y"})
    with pytest.raises(UserError, match="damaged archive"):
        get(tmp_path / "deep" / "to", remote(f"{server.url}/a", checksum="", into="", leaves=("good",)))
    assert not list(tmp_path.rglob("evil"))


def test_download_checks_the_content_of_an_archive(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = zipped({"other": "x"})
    with pytest.raises(UserError, match=r"does not contain wavs\. Put wavs into"):
        get(tmp_path, remote(f"{server.url}/a", checksum="", into="", leaves=("wavs",)))


def test_script_tries_the_given_mirror_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    body = zipped({"Flickr8k.token.txt": "a", "Flickr_8k.trainImages.txt": "b"})
    server.files["/m/Flickr8k_text.zip"] = body
    text = next(item for item in flickr8k.SOURCES if item.name == "Flickr8k_text.zip")
    changed = RemoteFile(**{**vars(text), "checksum": checksum(body)})
    monkeypatch.setattr(flickr8k, "SOURCES", (changed,))
    main(["--what", "flickr8k", "--to", str(tmp_path), "--mirror", f"{server.url}/m/"])
    assert (tmp_path / "Flickr8k_text" / "Flickr8k.token.txt").read_text() == "a"
    assert "unpacking" in capsys.readouterr().out


def test_readmes_have_the_sizes_of_the_corpora() -> None:
    root = Path(__file__).resolve().parents[3]
    text = (root / "README.md").read_text(encoding="utf-8")
    for name in ("flickr8k", "spokencoco"):
        remotes = find_corpus(name).sources
        downloads, unpacked = sum(item.bytes for item in remotes), sum(item.unpacked for item in remotes)
        free = unpacked + max(item.bytes for item in remotes)  # as in the check before a download
        size = f"{downloads / 1e9:.0f} GB of downloads"
        row = next(line for line in text.splitlines() if line.startswith(f"| [`egs/{name}`]"))
        assert size in row, size
        recipe = (root / "egs" / name / "README.md").read_text(encoding="utf-8")
        sentence = f"{size} ({free / 1e9:.0f} GB free to unpack them)"
        assert sentence in recipe, sentence


def test_sources_are_complete() -> None:
    for remotes in [*ENCODERS.values(), *(find_corpus(name).sources for name in corpus_names())]:
        for item in remotes:
            assert item.leaves and item.about and (item.bytes > 1e6 or item.bytes == 0)
            assert item.urls or item.name == "CORPUS-MSCOCO.tar.gz"  # its address is not known
            assert all(url.startswith(("http://", "https://")) for url in item.urls)
            assert item.bytes == 0 or (item.into is None) == (item.unpacked == 0)
            kind, _, digest = item.checksum.partition(":")
            assert not item.checksum or len(digest) == {"md5": 32, "sha256": 64}[kind]


def test_script_lists_the_known_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--what", "huge", "--to", str(tmp_path)])
    assert caught.value.code == 2
    known = " ".join(["base", "large", *corpus_names()])
    assert capsys.readouterr().err == f"error: --what: unknown name 'huge' (known: {known})\n"


def test_find_encoder_returns_the_first_form(tmp_path: Path) -> None:
    assert find_encoder(tmp_path, "ViT-B-32.pt") is None
    for form in ("ViT-B-32", "clip-vit-base-patch32", "ViT-B-32.pt"):
        (tmp_path / form).mkdir()
        assert find_encoder(tmp_path, "ViT-B-32.pt") == tmp_path / form


def test_driver_has_the_same_names_of_encoders() -> None:
    text = (Path(__file__).resolve().parents[3] / "utils" / "driver.sh").read_text(encoding="utf-8")
    for size, remotes in ENCODERS.items():
        for kind, remote in zip(("hubert", "clip"), remotes):
            names = re.search(rf'^declare -A {kind}_names=.*\[{size}\]="([^"]+)"', text, re.MULTILINE)
            assert names is not None and tuple(names[1].split()) == FORMS[remote.name]
