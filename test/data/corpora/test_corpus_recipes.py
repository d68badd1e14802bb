"""Recipes of published corpora on ten items: download from a local server, all stages, readers of other toolkits."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from speechclip.data.audio import num_samples
from speechclip.data.corpora.registry import corpus_names, find_corpus

ROOT = Path(__file__).resolve().parents[3]
#: By corpus, the module of its tests. `make_corpus` writes a corpus. `publish` puts the files of a corpus on a server
#: and into the corpus folder, and returns options of run.sh. `HEAD` is the head to train. `check_scores` checks its
#: scores.
MODULES: dict[str, Any] = {name: importlib.import_module(f"test_{name}") for name in corpus_names()}
PUBLISHED = [name for name, module in MODULES.items() if hasattr(module, "publish")]
SHORT = ["--", "--data.batch_size", "4", "--optim.max_steps", "2", "--optim.warmup_steps", "1"]
SHORT += ["--train.eval_interval", "2", "--train.log_interval", "1", "--eval.bootstrap", "20"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "published").mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "published"))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of the repository that recipes need."""
    top = tmp_path_factory.mktemp("clone")
    left_out = shutil.ignore_patterns("__pycache__", "corpus", "dump", "exp", "superb")
    for name in ("egs", "utils", "speechclip"):
        drop = left_out if name == "egs" else shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, top / name, ignore=drop)
    for data in (top / "egs").glob("*/data"):
        shutil.rmtree(data)
    # the real archives need more space than a test machine has
    (top / "site").mkdir()
    patch = "import shutil\nshutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**15, 0, 10**15)\n"
    (top / "site" / "sitecustomize.py").write_text(patch)
    return top


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_runs_from_download_to_report(name: str, tmp_path: Path, server: str, clone: Path) -> None:
    recipe = clone / "egs" / name
    (recipe / "corpus").mkdir()
    module = MODULES[name]
    options = module.publish(tmp_path / "published", recipe / "corpus")
    path = os.pathsep.join([str(clone / "site"), str(clone), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "SPEECHCLIP_PYTHON": sys.executable, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    head = getattr(module, "HEAD", "cascaded")

    def run(*words: str) -> str:
        done = subprocess.run(
            ["./run.sh", "--mirror", server, "--model", "base", "--head", head, "--feats", "dump", "--nj", "1",
             "--speech_encoder", "../mini/models/hubert", "--clip", "../mini/models/clip", *options, *words, *SHORT],
            cwd=recipe, env=environment, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run()
    scores = recipe / f"exp/base_{head}/scores"
    retrieval = json.loads((scores / "retrieval.json").read_text())
    assert retrieval["speech->image"]["n_queries"] >= retrieval["speech->image"]["n_gallery"] > 0
    assert "base" in (recipe / "exp/RESULTS.md").read_text()
    if head == "cascaded":
        assert "clean" in json.loads((scores / "keywords.json").read_text())
    if hasattr(module, "check_scores"):
        module.check_scores(recipe, scores)
    folders = sorted(str(path.parent) for path in recipe.glob("data/*/wav.scp"))
    valid = subprocess.run(
        ["bash", "../../utils/validate_data_dir.sh", *folders],
        cwd=recipe, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert valid.stdout.count(": valid: ") == len(folders) >= 3, valid.stderr
    assert run().count("up to date") == 7


def _prepared(folder: Path, name: str) -> list[Path]:
    made = MODULES[name].make_corpus(folder / "corpus", *getattr(MODULES[name], "PARTS", ()))
    corpus = find_corpus(name)
    corpus.prepare(str(made), str(folder / "data"), corpus.limits)
    return sorted(path.parent for path in (folder / "data").glob("*/wav.scp"))


def _paths(folder: Path) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in (folder / "wav.scp").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", MODULES)
def test_lhotse_reads_the_directories(name: str, tmp_path: Path) -> None:
    kaldi = pytest.importorskip("lhotse.kaldi")
    for folder in _prepared(tmp_path, name):
        recordings, supervisions, _ = kaldi.load_kaldi_data_dir(folder, sampling_rate=16000)
        lines = (folder / "wav.scp").read_text().splitlines()
        assert len(recordings) == len(supervisions) == len(lines)
        first = next(iter(supervisions))
        text = dict(line.split(" ", 1) for line in (folder / "text").read_text(encoding="utf-8").splitlines())
        assert first.text == text[first.id] and first.speaker
        assert first.duration == pytest.approx(num_samples(_paths(folder)[first.id]) / 16000)


@pytest.mark.parametrize("name", MODULES)
def test_espnet_reads_the_directories(name: str, tmp_path: Path) -> None:
    read_text = pytest.importorskip("espnet2.fileio.read_text")
    sound_scp = pytest.importorskip("espnet2.fileio.sound_scp")
    for folder in _prepared(tmp_path, name):
        texts = read_text.read_2columns_text(folder / "text")
        sounds = sound_scp.SoundScpReader(folder / "wav.scp")
        assert set(texts) == set(sounds.keys()) == set(read_text.read_2columns_text(folder / "utt2spk"))
        first = next(iter(texts))
        rate, wave = sounds[first]
        assert rate == 16000 and len(wave) == num_samples(_paths(folder)[first])
