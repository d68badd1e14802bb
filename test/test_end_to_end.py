"""The mini recipe on a few scenes: every stage, a second run, a kill in training, a resume, another version."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
SCENES = 50
SHORT = ["--", "--data.batch_size", "32", "--optim.max_steps", "12", "--optim.warmup_steps", "2"]
SHORT += ["--train.eval_interval", "4", "--train.log_interval", "2", "--eval.bootstrap", "50"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder egs/mini in a copy of the parts of the repository that recipes need."""
    top = tmp_path_factory.mktemp("clone")
    for name in ("egs", "utils", "speechclip"):
        left_out = shutil.ignore_patterns("__pycache__", "corpus", "data", "dump", "exp")
        if name == "speechclip":
            left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, top / name, ignore=left_out)
    return top / "egs" / "mini"


def _environment(recipe: Path) -> dict[str, str]:
    path = os.pathsep.join([str(recipe.parent.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "SPEECHCLIP_PYTHON": sys.executable, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _run(recipe: Path, *options: str, status: int = 0) -> str:
    words = ["./run.sh", "--scenes", str(SCENES), *options]
    done = subprocess.run(
        words, cwd=recipe, env=_environment(recipe), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture(scope="module")
def first(recipe: Path) -> str:
    """The output of the first whole run."""
    return _run(recipe, *SHORT)


def test_a_first_run_writes_every_file_with_right_counts(recipe: Path, first: str) -> None:
    assert len((recipe / "data/train/wav.scp").read_text().splitlines()) == SCENES * 3
    assert len((recipe / "data/test/img.scp").read_text().splitlines()) == SCENES // 20
    for head in ("parallel", "cascaded"):
        scores = json.loads((recipe / f"exp/tiny_{head}/scores/retrieval.json").read_text())
        there = scores["speech->image"]
        assert set(there) == {"R@1", "R@5", "R@10", "MRR", "n_queries", "n_gallery", "ci95"}
        assert (there["n_queries"], there["n_gallery"]) == (SCENES // 20 * 3, SCENES // 20)
        assert {"image->speech", "speech->text", "text->speech", "text->image", "random"} <= set(scores)
        assert scores["random"]["speech->image"]["R@1"] == pytest.approx(100 / (SCENES // 20))
        assert scores["provenance"]["seed"] == 0
        assert "speechclip.bin.score_retrieval" in scores["provenance"]["command"]
        assert (recipe / f"exp/tiny_{head}/figures").is_dir()
        page = (recipe / f"exp/tiny_{head}/report/index.html").read_text(encoding="utf-8")
        assert page.count("data:audio/mpeg") == SCENES // 20 * 3 and f"<h1>tiny_{head}</h1>" in page
    keywords = json.loads((recipe / "exp/tiny_cascaded/scores/keywords.json").read_text())
    assert {"clean", "reference", "content_top1", "frequency_prior"} <= set(keywords)
    count = sum(name.startswith("kw") for name in keywords["clean"])
    lines = (recipe / "exp/tiny_cascaded/scores/keywords.jsonl").read_text().splitlines()
    assert len(lines) == SCENES // 20 * 3 * count
    record = json.loads(lines[0])
    fields = {"utterance", "keyword", "neighbours", "span", "caption", "hit", "gold", "word", "overlap", "spoken"}
    assert set(record) == fields and len(record["neighbours"]) == 5
    assert record["spoken"] is not None  # the corpus has alignments
    assert {"segmentation", "overlap"} <= set(keywords)
    kept = np.load(recipe / "exp/tiny_cascaded/scores/attention.npz")
    assert len(kept["weights"]) == (kept["keywords"] * kept["frames"]).sum()
    assert kept["ids"].tolist() == sorted({json.loads(line)["utterance"] for line in lines})
    for head, queries in (("parallel", {"written", "spoken"}), ("cascaded", {"written", "spoken", "attention"})):
        spotting = json.loads((recipe / f"exp/tiny_{head}/scores/spotting.json").read_text())
        assert set(spotting) == {*queries, "provenance"} and set(spotting["written"]) == {"exact", "semantic"}
    results = (recipe / "exp" / "RESULTS.md").read_text()
    assert "### Keyword spotting, exact labels" in results
    assert "tiny" in results and "cascaded" in results and "parallel" in results


def test_a_second_run_does_nothing_in_five_seconds(recipe: Path, first: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in (recipe / "exp").rglob("best/*")}
    used = _processor_seconds()
    said = _run(recipe, *SHORT)
    assert _processor_seconds() - used < 5  # processor time, because other work on the machine does not count
    assert said.count("up to date") == 3 + 3 * 2 + 1
    assert before == {path: path.stat().st_mtime_ns for path in (recipe / "exp").rglob("best/*")}


def test_a_run_leaves_committed_files_unchanged(recipe: Path, first: str) -> None:
    """All outputs are below folders that git ignores."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for path in recipe.iterdir():
        known = (ROOT / "egs/mini" / path.name).exists()
        assert known or f"/egs/*/{path.name}/" in ignored or f"/egs/*/{path.name}" in ignored, path
    assert (recipe / "RESULTS.md").read_bytes() == (ROOT / "egs/mini/RESULTS.md").read_bytes()


def test_the_summary_fits_80_columns(recipe: Path, first: str) -> None:
    summary = first[first.rindex("Retrieval on the test split") :].splitlines()
    assert max(map(len, summary)) <= 80
    names = [line.split()[0] for line in summary[3:7]]
    assert names == ["tiny_parallel", "tiny_cascaded", "topline:", "chance"]
    assert {"Page:    exp/tiny_parallel/report/index.html", "Tables:  exp/RESULTS.md"} <= set(summary)


def _stored(recipe: Path, run: str) -> dict[str, bytes]:
    return {name: (recipe / f"exp/{run}/{name}/model.safetensors").read_bytes() for name in ("best", "last")}


def test_another_version_trains_and_prepares_nothing_again(recipe: Path, first: str) -> None:
    before, module = _stored(recipe, "tiny_parallel"), recipe.parents[1] / "speechclip/__init__.py"
    text = module.read_text()
    changed = re.sub(r'^__version__ = ".*"$', '__version__ = "99.0"', text, flags=re.MULTILINE)
    assert changed != text
    module.write_text(changed)
    try:
        assert _run(recipe, *SHORT).count("up to date") == 3 + 3 * 2 + 1
    finally:
        module.write_text(text)
    assert _stored(recipe, "tiny_parallel") == before


def test_a_batch_larger_than_the_data_keeps_a_finished_run(recipe: Path, first: str) -> None:
    before = _stored(recipe, "tiny_parallel")
    said = _run(
        recipe, "--head", "parallel", "--stage", "3", *SHORT, "--data.batch_size", str(SCENES * 3 + 1), status=1
    )
    assert said.count("error: data.batch_size: 151 is more than the 150 training utterances. Use at most 150.") == 1
    assert "Traceback" not in said and _stored(recipe, "tiny_parallel") == before
    said = _run(recipe, "--head", "parallel", *SHORT)
    assert "already trained: 12 steps" in said and "stage 4 (retrieval): tiny_parallel seed 0: up to date" in said


def test_stage_4_alone_writes_lost_scores_again(recipe: Path, first: str) -> None:
    target = recipe / "exp/tiny_parallel/scores/retrieval.json"
    before = json.loads(target.read_text())
    target.unlink()
    _run(recipe, "--stage", "4", "--head", "parallel", *SHORT)
    again = json.loads(target.read_text())
    assert {**before, "provenance": None} == {**again, "provenance": None}


def test_the_trained_model_loads_and_embeds(recipe: Path, first: str) -> None:
    from speechclip import SpeechCLIP

    waves = [recipe / line.split()[1] for line in (recipe / "data/test/wav.scp").read_text().splitlines()]
    cosines = {}
    for head in ("parallel", "cascaded"):
        model = SpeechCLIP.from_pretrained(recipe / f"exp/tiny_{head}/best")
        stored = np.load(recipe / f"exp/tiny_{head}/scores/speech_embeddings.npz")["embeddings"]
        alone = np.concatenate([model.encode_speech(wave).numpy() for wave in waves])
        cosines[head] = (alone * stored).sum(axis=1)
    assert cosines["parallel"].min() > 0.99  # fp16 store, and alone instead of in a padded batch
    assert np.median(cosines["cascaded"]) > 0.99  # rounding may change a keyword of some utterances
    assert len(model.keywords(waves[0])[0]) == model.network.config.head.keywords


def test_a_killed_run_resumes_to_equal_weights(recipe: Path, first: str) -> None:
    options = ["--stage", "3", "--stop_stage", "3", "--head", "cascaded", "--tag", "cut", *SHORT]
    words = ["./run.sh", "--scenes", str(SCENES), *options]
    process = subprocess.Popen(
        words, cwd=recipe, env=_environment(recipe), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    saved, deadline = recipe / "exp/tiny_cascaded_cut/last/training_state.json", time.monotonic() + 120
    while not saved.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads(saved.read_text())["step"] in (4, 8)
    said = _run(recipe, *options)
    assert "resuming after step" in said
    whole, cut = (
        load_file(recipe / f"exp/{name}/last/model.safetensors") for name in ("tiny_cascaded", "tiny_cascaded_cut")
    )
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert np.array_equal(value, cut[name]), name


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(recipe: Path, first: str) -> None:
    weights = []
    for processes in ("1", "2"):
        options = ["--stage", "3", "--stop_stage", "3", "--head", "cascaded", "--tag", f"by{processes}"]
        plain = ["--model.head.dropout", "0", "--model.head.input_dropout", "0", "--optim.lr", "1e-4"]
        said = _run(recipe, *options, "--ngpu", processes, *SHORT, *plain)
        assert "step 12 dev" in said
        weights.append(load_file(recipe / f"exp/tiny_cascaded_by{processes}/last/model.safetensors"))
    # test/train/test_distributed.py explains the tensors that are left out
    for name in weights[0].keys() - {"head.norm.bias", "head.projection.bias", "head.batch_norm.running_mean"}:
        assert np.abs(weights[0][name] - weights[1][name]).max() < 1e-5, name


def test_a_wrong_configuration_is_one_line(recipe: Path, first: str) -> None:
    said = _run(recipe, "--stage", "3", "--tag", "none", "--", "--optim.learning_rate", "1", status=2)
    assert "optim.learning_rate" in said and "Traceback" not in said
    assert not (recipe / "exp/tiny_parallel_none").exists()
