"""Recipes of published corpora on ten items: download from a local server, all stages, readers of other toolkits."""

from __future__ import annotations

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
import test_localized_narratives
import test_places
import test_speechcoco
import test_yfacc
from corpus_files import archive

from speechclip.data.corpora.localized_narratives import prepare_localized_narratives
from speechclip.data.corpora.places import prepare_places
from speechclip.data.corpora.speechcoco import prepare_speechcoco
from speechclip.data.corpora.yfacc import prepare_yfacc
from speechclip.report.results.document import render
from speechclip.report.results.rows import rows_of_run
from speechclip.report.runs import load_run

ROOT = Path(__file__).resolve().parents[3]
CORPORA = ["places", "localized_narratives", "speechcoco", "yfacc"]
SHORT = ["--", "--data.batch_size", "4", "--optim.max_steps", "2", "--optim.warmup_steps", "1"]
SHORT += ["--train.eval_interval", "2", "--train.log_interval", "1", "--eval.bootstrap", "20"]


def places(published: Path, corpus: Path) -> list[str]:
    """English in an archive; the photographs, Hindi and Japanese are on disk."""
    made = test_places.make_corpus(published / "made")
    test_places.add_hindi(made)
    test_places.add_japanese(made)
    content = archive({"PlacesAudio_400k_distro": made / "PlacesAudio_400k_distro"})
    (published / "placesaudio_2020_splits.tar.gz").write_bytes(content)
    for name in ("images", "PlacesHindi100k", "PlacesAudioJpn_100k"):
        shutil.move(made / name, corpus / name)
    return []


def localized_narratives(published: Path, corpus: Path) -> list[str]:
    """Annotations and recordings on the server, photographs on disk."""
    test_localized_narratives.make_corpus(published, "flickr30k", annotations="")
    shutil.move(published / "flickr30k-images", corpus / "flickr30k-images")
    return ["--parts", "flickr30k_"]


def speechcoco(published: Path, corpus: Path) -> list[str]:
    """Recordings in an archive; COCO's photographs on disk, as their checksums are those of the real files."""
    made = test_speechcoco.make_corpus(published / "made", form="database")
    (published / "CORPUS-MSCOCO.tar.gz").write_bytes(archive({"CORPUS-MSCOCO": made / "CORPUS-MSCOCO"}))
    for name in ("train2014", "val2014"):
        shutil.move(made / name, corpus / name)
    return []


def yfacc(published: Path, corpus: Path) -> list[str]:
    """Recordings and captions in an archive; Flickr8k is on disk, as its checksums are those of the real files."""
    made = test_yfacc.make_corpus(published / "made")
    (published / "yfacc_v6.tar.gz").write_bytes(archive({"yfacc_v6": made / "yfacc_v6"}))
    for name in ("Flicker8k_Dataset", "Flickr8k_text"):
        shutil.move(made / name, corpus / name)
    return []


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
@pytest.mark.parametrize("name", CORPORA)
def test_recipe_runs_from_download_to_report(name: str, tmp_path: Path, server: str, clone: Path) -> None:
    recipe = clone / "egs" / name
    (recipe / "corpus").mkdir()
    options = globals()[name](tmp_path / "published", recipe / "corpus")
    path = os.pathsep.join([str(clone / "site"), str(clone), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "SPEECHCLIP_PYTHON": sys.executable, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    head = "parallel" if name == "places" else "cascaded"

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
    assert retrieval["speech->image"]["n_queries"] == retrieval["speech->image"]["n_gallery"] * (
        2 if name == "speechcoco" else 1
    )
    results = (recipe / "exp/RESULTS.md").read_text()
    assert "base" in results
    if name == "places":
        for split in ("test_unseen", "test_multilingual"):
            assert "speech->image" in json.loads((scores / split / "retrieval.json").read_text())
        across = json.loads((scores / "test_multilingual/retrieval.json").read_text())["across_languages"]
        assert set(across) == {"en->hi", "en->ja", "hi->en", "hi->ja", "ja->en", "ja->hi"}
        assert across["en->hi"]["random"]["R@1"] == 100  # one image
        assert "across_languages" not in retrieval  # the seen set is English
        rows = rows_of_run(load_run(recipe / f"exp/base_{head}"), "places")
        committed = render(rows, "places", (recipe / "RESULTS.template.md").read_text(), "template")
        for text in (results, committed):  # seen, then unseen, with both directions
            seen, unseen = (text.index(f"### Speech and images{name}\n") for name in ("", ": test_unseen"))
            assert seen < unseen
            for start in (seen, unseen):
                line = next(line for line in text[start:].splitlines() if line.startswith("| model"))
                names = [f"{way} R@{cutoff}" for way in ("S→I", "I→S") for cutoff in (1, 5, 10)]
                assert [cell.strip() for cell in line.split("|")[4:10]] == names
            assert "### Speech to speech in another language: test_multilingual" in text
    else:
        keywords = json.loads((scores / "keywords.json").read_text())
        assert {"segmentation", "overlap"} <= set(keywords)
    if name == "localized_narratives":
        windows = retrieval["windows"]
        assert (windows["seconds"], windows["windows"]) == (10, 2) and "speech->image" in windows
    folders = sorted(str(path.parent) for path in recipe.glob("data/*/wav.scp"))
    valid = subprocess.run(
        ["bash", "../../utils/validate_data_dir.sh", *folders],
        cwd=recipe, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert valid.stdout.count(": valid: ") == len(folders) == (7 if name == "places" else 3), valid.stderr
    assert run().count("up to date") == 7


def _prepared(folder: Path, name: str) -> list[Path]:
    if name == "places":
        corpus = test_places.make_corpus(folder / "corpus")
        test_places.add_hindi(corpus)
        prepare_places(corpus, folder / "data")
    elif name == "localized_narratives":
        corpus = test_localized_narratives.make_corpus(folder / "corpus", "coco", "open_images")
        prepare_localized_narratives(corpus, folder / "data")
    elif name == "yfacc":
        prepare_yfacc(test_yfacc.make_corpus(folder / "corpus"), folder / "data")
    else:
        prepare_speechcoco(test_speechcoco.make_corpus(folder / "corpus"), folder / "data")
    return sorted(path.parent for path in (folder / "data").glob("*/wav.scp"))


@pytest.mark.parametrize("name", CORPORA)
def test_lhotse_reads_the_directories(name: str, tmp_path: Path) -> None:
    kaldi = pytest.importorskip("lhotse.kaldi")
    for folder in _prepared(tmp_path, name):
        recordings, supervisions, _ = kaldi.load_kaldi_data_dir(folder, sampling_rate=16000)
        lines = (folder / "wav.scp").read_text().splitlines()
        assert len(recordings) == len(supervisions) == len(lines)
        first = next(iter(supervisions))
        text = dict(line.split(" ", 1) for line in (folder / "text").read_text(encoding="utf-8").splitlines())
        assert first.text == text[first.id] and first.speaker and first.duration == pytest.approx(0.6)


@pytest.mark.parametrize("name", CORPORA)
def test_espnet_reads_the_directories(name: str, tmp_path: Path) -> None:
    read_text = pytest.importorskip("espnet2.fileio.read_text")
    sound_scp = pytest.importorskip("espnet2.fileio.sound_scp")
    for folder in _prepared(tmp_path, name):
        texts = read_text.read_2columns_text(folder / "text")
        sounds = sound_scp.SoundScpReader(folder / "wav.scp")
        assert set(texts) == set(sounds.keys()) == set(read_text.read_2columns_text(folder / "utt2spk"))
        rate, wave = sounds[next(iter(texts))]
        assert (rate, len(wave)) == (16000, 9600)
