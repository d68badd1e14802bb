"""Tests of models by name: the published names, the download into the cache, the model of the mini recipe."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import wave, whole_model
from published_files import reduced_ids, save_checkpoint_file, state_dict

from speechclip.api import SpeechCLIP
from speechclip.bin.convert_checkpoint import main as convert
from speechclip.bin.models import main as list_models
from speechclip.checkpoint import pretrained, published
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.checkpoint.published import PUBLISHED_MODELS, PublishedModel, cached_file, fetch_published
from speechclip.common.errors import MissingFileError, UserError
from speechclip.upstream import hubconf

NAME = "parallel_base"
WAVES = [wave(9000, 1), wave(5000, 2)]


class Server:
    """A local server of one file.

    Attributes:
        body: the file.
        cuts: for each of the next connections, the number of bytes after which it is cut.
        ranges: the range of each request, "" for the whole file.
    """

    def __init__(self) -> None:
        self.body = b""
        self.cuts: list[int] = []
        self.ranges: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                server.ranges.append(wanted)
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first or 0), min(int(last or len(server.body)) + 1, len(server.body))
                body = server.body[start:end]
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(server.body)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

            def log_message(self, *words: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve a published checkpoint under the name ``NAME``, with an empty cache."""
    made = Server()
    path = save_checkpoint_file(tmp_path / "original.ckpt", state_dict("parallel", reduced_ids(), original=False))
    made.body = path.read_bytes()
    model = dataclasses.replace(PUBLISHED_MODELS[NAME], url=f"{made.url}/val_recall_mean_1%3D36.0100.ckpt")
    monkeypatch.setitem(published.PUBLISHED_MODELS, NAME, model)
    monkeypatch.setenv("SPEECHCLIP_CACHE", str(tmp_path / "cache"))
    yield made
    made.http.shutdown()
    made.http.server_close()


def fetch(model: PublishedModel | None = None, progress: Any = None) -> Path:
    return fetch_published(model or PUBLISHED_MODELS[NAME], progress, pause=0.0)


def test_published_names_are_those_of_upstream() -> None:
    heads = ("parallel", "cascaded", "hybrid", "cascaded_plus", "hybrid_plus")
    names = {f"{head}_{kind}" for head in heads for kind in ("base", "large", "large_coco")}
    assert set(PUBLISHED_MODELS) == names and len(names) == 15
    assert {f"speechclip_{name}" for name in names} == set(hubconf.PUBLISHED)
    assert len({model.url for model in PUBLISHED_MODELS.values()}) == 15


@pytest.mark.parametrize(
    ("name", "file", "score", "corpus"),
    [
        ("parallel_base", "epoch_131-step_15443-val_recall_mean_1_36.0100.ckpt", "R@1 36.01", "Flickr8k"),
        ("parallel_large_coco", "epoch_14-step_33224-val_recall_mean_10_84.0128.ckpt", "R@10 84.01", "SpokenCOCO"),
        ("cascaded_large", "epoch_187-step_21995-val_recall_mean_10_62.7700.ckpt", "R@10 62.77", "Flickr8k"),
        ("hybrid_plus_large", "epoch=50-step=5966-val_recall_mean_10=89.3500.ckpt", "R@10 89.35", "Flickr8k"),
    ],
)
def test_published_score_follows_file_name(name: str, file: str, score: str, corpus: str) -> None:
    model = PUBLISHED_MODELS[name]
    assert (model.file_name, model.score, model.corpus) == (file, score, corpus)
    assert all(model.score for model in PUBLISHED_MODELS.values())


def test_from_pretrained_downloads_a_name_once(server: Server, tmp_path: Path) -> None:
    expected = SpeechCLIP.from_pretrained(tmp_path / "original.ckpt", clip="").encode_speech(WAVES)
    for name in (NAME, f"speechclip_{NAME}"):
        assert torch.equal(SpeechCLIP.from_pretrained(name, clip="").encode_speech(WAVES), expected)
    assert server.ranges == [""]
    assert cached_file(PUBLISHED_MODELS[NAME]) == tmp_path / "cache" / NAME / "val_recall_mean_1=36.0100.ckpt"


def test_convert_checkpoint_takes_a_name(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(["--checkpoint", NAME, "--out", str(tmp_path / "out"), "--clip", ""])
    origin = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert origin["converted_from"] == "val_recall_mean_1=36.0100.ckpt"
    expected = SpeechCLIP.from_pretrained(NAME, clip="").encode_speech(WAVES)
    assert torch.equal(SpeechCLIP.from_pretrained(tmp_path / "out").encode_speech(WAVES), expected)
    with pytest.raises(SystemExit):
        convert(["--checkpoint", "none.ckpt", "--out", str(tmp_path / "other")])
    assert "error: none.ckpt: neither a file nor a published model." in capsys.readouterr().err


def test_every_published_name_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []

    def download(model: PublishedModel) -> Path:
        seen.append(model.url)
        raise UserError("no network")

    monkeypatch.setattr(pretrained, "download_published", download)
    for name in PUBLISHED_MODELS:
        with pytest.raises(UserError, match="no network"):
            SpeechCLIP.from_pretrained(name)
    assert seen == [model.url for model in PUBLISHED_MODELS.values()]


def test_fetch_resumes_after_a_cut(server: Server) -> None:
    server.cuts = [100_000]
    progress: list[tuple[int, int | None]] = []
    assert fetch(progress=lambda done, total: progress.append((done, total))).read_bytes() == server.body
    assert server.ranges == ["", "bytes=100000-"]
    assert progress[0] == (100_000, len(server.body)) and progress[-1] == (len(server.body), len(server.body))


def test_fetch_resumes_after_a_kill(server: Server) -> None:
    file = cached_file(PUBLISHED_MODELS[NAME])
    file.parent.mkdir(parents=True)
    file.with_name(f"{file.name}.part").write_bytes(server.body[:5000])
    file.with_name(f"{file.name}.part.url").write_text(PUBLISHED_MODELS[NAME].url)
    assert fetch().read_bytes() == server.body and server.ranges == ["bytes=5000-"]


def test_fetch_refuses_a_file_of_wrong_size(server: Server) -> None:
    model = dataclasses.replace(PUBLISHED_MODELS[NAME], bytes=len(server.body) + 1)
    for _ in range(2):  # the second call finds the file in the cache
        with pytest.raises(UserError, match=f"{len(server.body)} bytes, {len(server.body) + 1} are published. Delete"):
            fetch(model)
    assert len(server.ranges) == 1


def test_fetch_refuses_less_than_announced(server: Server) -> None:
    server.cuts = [0] * 50
    with pytest.raises(UserError, match="0 of"):
        fetch()
    assert not cached_file(PUBLISHED_MODELS[NAME]).exists()


def test_fetch_names_address_that_fails(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match=f"{server.url}/val_recall.*Put .* into .*cache/{NAME}") as caught:
        fetch()
    assert "\n" not in str(caught.value)


def test_progress_bar_shows_share_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    bar = pretrained.ProgressBar()
    bar(1_000_000, 4_000_000)
    bar(4_000_000, 4_000_000)
    first, second = capsys.readouterr().err.split("\r")[1:]
    assert first.startswith(f"[{'#' * 7}{'.' * 23}] 1.0 MB of 4.0 MB")
    assert second.startswith(f"[{'#' * 30}] 4.0 MB of 4.0 MB") and second.endswith("\n")
    bar(5_000_000, None)
    assert capsys.readouterr().err.startswith("\r5.0 MB")


def test_upstream_and_api_share_the_cache(server: Server) -> None:
    fetch()
    assert hubconf._fetch(PUBLISHED_MODELS[NAME].url, refresh=False) == str(cached_file(PUBLISHED_MODELS[NAME]))
    assert len(server.ranges) == 1
    hubconf._fetch(PUBLISHED_MODELS[NAME].url, refresh=True)
    assert len(server.ranges) == 2


def test_models_lists_cache_state(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch()
    partial = cached_file(PUBLISHED_MODELS["hybrid_large"])
    partial.parent.mkdir(parents=True)
    partial.with_name(f"{partial.name}.part").write_bytes(bytes(3_000_000))
    list_models([])
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert lines["name"] == "name size corpus published cache"
    assert lines[NAME] == f"{NAME} {len(server.body) / 1e6:.0f} MB Flickr8k R@1 36.01 complete"
    assert lines["hybrid_large"] == "hybrid_large unknown Flickr8k R@10 90.10 partial, 3 MB"
    assert lines["parallel_large_coco"] == "parallel_large_coco unknown SpokenCOCO R@10 84.01 -"
    assert set(PUBLISHED_MODELS) | {"mini"} < set(lines)
    assert lines["fast_vgs_coco"] == "fast_vgs_coco unknown SpokenCOCO -"
    (line,) = [line for name, line in lines.items() if name == "fast_vgs_coco,"]
    assert f"copy best_bundle.pth and args.pkl of the authors by hand into {published.cache_folder()}/NAME" in line
    published.manual_path("fast_vgs_plus_coco").parent.mkdir(parents=True)
    published.manual_path("fast_vgs_plus_coco").write_bytes(bytes(2_000_000))
    list_models(["--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[NAME]["url"] == PUBLISHED_MODELS[NAME].url and rows[NAME]["cache"] == "complete"
    assert rows["fast_vgs_plus_coco"]["size"] == "2 MB" and rows["fast_vgs_plus_coco"]["cache"] == "complete"
    assert rows["fast_vgs_plus_coco"]["url"] == ""


def test_models_asks_hosts_for_sizes(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, model in list(PUBLISHED_MODELS.items()):  # one host knows the file, the others do not exist
        url = model.url if name == NAME else f"http://127.0.0.1:9/{name}"
        monkeypatch.setitem(published.PUBLISHED_MODELS, name, dataclasses.replace(model, url=url))
    list_models(["--sizes"])
    printed = capsys.readouterr()
    sizes = {line.split()[0]: line.split()[1:3] for line in printed.out.splitlines()}
    assert sizes[NAME] == [f"{len(server.body) / 1e6:.0f}", "MB"]
    assert sizes["hybrid_large"][0] == "unknown"
    assert server.ranges == ["bytes=0-0"]
    assert printed.err.startswith(
        "warning: 14 sizes are unknown. The first problem is http://127.0.0.1:9/parallel_large:"
    )
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("place", ["speechclip/mini", "egs/mini/models"], ids=["wheel", "checkout"])
def test_mini_is_found_next_to_its_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    network, config = whole_model(tmp_path / "recipe", "hybrid")
    root = tmp_path / "root"
    (root / place).mkdir(parents=True)
    for name, path in (("hubert", config.model.speech_encoder.path), ("clip", config.model.clip.path)):
        (tmp_path / "recipe" / path).rename(root / place / name)
    encoder = dataclasses.replace(config.model.speech_encoder, path="../hubert")
    clip = dataclasses.replace(config.model.clip, path="../clip")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, speech_encoder=encoder, clip=clip))
    save_checkpoint(root / place / "hybrid", network, network.trained_state(), config, {"seed": 0})
    monkeypatch.setattr(pretrained, "__file__", str(root / "speechclip" / "checkpoint" / "pretrained.py"))
    monkeypatch.chdir(tmp_path)
    assert pretrained.mini_folder() == root / place / "hybrid"
    model = SpeechCLIP.from_pretrained("mini")
    assert torch.equal(model.encode_speech(WAVES), SpeechCLIP(network).encode_speech(WAVES))


def test_mini_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "speechclip" / "checkpoint" / "pretrained.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="egs/mini/models/hybrid/model.safetensors: is missing"):
        SpeechCLIP.from_pretrained("mini")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paralel_base", "^paralel_base: neither a checkpoint folder nor a published model. `speechclip models` lists"),
        ("exp/run/best", "^exp/run/best/model.safetensors: is missing$"),
        ("/no/such", "^/no/such/model.safetensors: is missing$"),
        ("./none", "^none/model.safetensors: is missing$"),
    ],
)
def test_from_pretrained_names_missing_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("exp/run")
    with pytest.raises(UserError, match=message):
        SpeechCLIP.from_pretrained(name)
