"""tools/measure/kill_runs.py and tools/measure/plan_corpus.py: comparing, killing, measuring and planning."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import JOINT, STATES, WIDTH, save_hubert
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "measure"), str(ROOT / "test" / "utils")]
import fake_recipe  # noqa: E402
import kill_runs  # noqa: E402
import plan_corpus  # noqa: E402

from speechclip.data.features import FeatureWriter  # noqa: E402


def _ended(top: Path) -> Path:
    """Write the files of a finished run that are compared."""
    for name in ("data/train", "dump/tiny/train", "exp/a/best", "exp/a/last.old", "exp/a/scores", "data/.done"):
        (top / name).mkdir(parents=True)
    (top / "data/train/text").write_text("u a dog\n")
    (top / "data/.done/1_prepare").write_text(str(top))  # a stamp, which is not compared
    for name in ("best", "last.old"):
        save_file({"w": torch.arange(4.0)}, top / f"exp/a/{name}/model.safetensors")
    with FeatureWriter(top / "dump/tiny/train", encoder={}, layers=[0]) as writer:
        writer.add("u", torch.ones(1, 3, 2))
    np.savez(top / "exp/a/scores/speech_embeddings.npz", ids=["u"], embeddings=np.ones((1, 2)), source=str(top))
    (top / "exp/a/scores/retrieval.json").write_text(json.dumps({"R@1": 3.0, "provenance": {"command": str(top)}}))
    return top


def _another_feature(top: Path) -> None:
    for path in (top / "dump/tiny/train").iterdir():
        path.unlink()
    with FeatureWriter(top / "dump/tiny/train", encoder={}, layers=[0]) as writer:
        writer.add("u", torch.ones(1, 3, 2) + 2**-9)


CHANGES: dict[str, Any] = {
    "data/train/text": lambda top: (top / "data/train/text").write_text("u a cat\n"),
    "dump/tiny/train/feats.scp": _another_feature,
    "exp/a/best/model.safetensors": lambda top: save_file(
        {"w": torch.tensor([0, 1, 2, 3 + 2**-20])}, top / "exp/a/best/model.safetensors"
    ),
    "exp/a/scores/speech_embeddings.npz": lambda top: np.savez(
        top / "exp/a/scores/speech_embeddings.npz", ids=["u"], embeddings=np.full((1, 2), 1 + 2**-20), source=""
    ),
    "exp/a/scores/retrieval.json": lambda top: (top / "exp/a/scores/retrieval.json").write_text('{"R@1": 3.1}'),
}


def test_every_difference_between_two_runs_is_found(tmp_path: Path) -> None:
    whole, killed = _ended(tmp_path / "whole"), _ended(tmp_path / "killed")
    assert kill_runs.differences(whole, killed) == (5, [])
    for count, (name, change) in enumerate(CHANGES.items(), 1):
        change(killed)
        wrong = kill_runs.differences(whole, killed)[1]
        assert name in wrong and len(wrong) == count
    (killed / "exp/a/best/model.safetensors").unlink()
    assert "exp/a/best/model.safetensors" in kill_runs.differences(whole, killed)[1]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kill_runs.Recipe:
    """A recipe whose stages are stubs."""
    made = object.__new__(kill_runs.Recipe)
    made.folder = fake_recipe.FakeRecipe(tmp_path).folder
    made.words, made.mark, made.output = ["--head", "parallel"], f"test{os.getpid()}", tmp_path / "output.txt"
    return made


def test_a_kill_ends_all_processes_and_names_the_stage(recipe: kill_runs.Recipe) -> None:
    unit = (3, "tiny_parallel seed 0")
    assert recipe.killed_in(unit, 0.2, [], {"SLEEP": "train"}) == unit
    wanted = f"{kill_runs.MARK}={recipe.mark}".encode()
    assert not [number for number in kill_runs._processes() if wanted in kill_runs._environment(number)]
    lengths = recipe.finish({})
    assert list(lengths) == [unit, (4, unit[1]), (5, unit[1]), (6, "")]  # earlier stages are up to date
    assert recipe.finish({}) == {}
    assert recipe.killed_in(unit, 0.0, [], {}) is None  # every stage is up to date
    with pytest.raises(kill_runs.UserError, match="ended with status 1: error: run.sh: stage 3 .train. failed"):
        recipe.killed_in((5, unit[1]), 0.0, ["--stage", "3", "--force", "true"], {"FAIL": "train"})


def test_the_environment_changes_between_starts(recipe: kill_runs.Recipe) -> None:
    draw, seen, moved = random.Random(0), set(), 0
    for _ in range(20):
        before = recipe.output.parent.stat().st_mtime
        changes = kill_runs.other_world(draw, recipe.folder)
        seen.add((changes["TZ"], changes["LC_ALL"], changes["PYTHONHASHSEED"]))
        moved += any(abs(path.stat().st_mtime - time.time()) > 1e6 for path in recipe.folder.rglob("*"))
        assert recipe.output.parent.stat().st_mtime == before
    assert len(seen) == 20 and moved


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_in_every_stage_ends_undisturbed(tmp_path: Path) -> None:
    words = ["--kills", "8", "--each", "1", "--scenes", "40", "--steps", "8", "--head", "parallel"]
    command = [sys.executable, str(ROOT / "tools/measure/kill_runs.py"), *words, "--folder", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=850)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all equal to the undisturbed run's" in ended.stdout
    assert "another version: resumed, equal weights, stages 0 to 2 up to date" in ended.stdout
    assert "killed three times: the earlier weights are in replaced/1" in ended.stdout
    assert len(re.findall("^kill ", ended.stdout, re.MULTILINE)) >= 8


RATES = plan_corpus.MeasuredRates(
    speech=10, images=5, captions=20, written=1e6, read=2e6, step=0.5, table_bytes=100, mapped_bytes=70,
    table_memory=0.5, tables=1e4, pairs=1e6, batch=10, layers=2, width=3, joint=4,
)  # fmt: skip


def test_needs_by_hand() -> None:
    corpus = plan_corpus.Corpus(utterances=100, images=20, hours=0.1, test_utterances=10, test_images=5)
    rows = {(kind, what): value for kind, what, value, _ in plan_corpus.estimate(RATES, corpus, 10, 3, 1)}
    assert rows == {
        ("disk", "recordings"): 3600 * 32000,
        ("disk", "data directory"): 1000 * 100,
        ("disk", "CLIP embeddings"): 1200 * 16,
        ("disk", "mapped tables"): 1000 * 70 + 1200 * 16,
        ("disk", "stored features"): 3600 * 50 * 2 * 3 * 2,
        ("time", "building mapped tables, once"): 0.1,
        ("time", "CLIP embeddings"): 200 / 5 + 1000 / 20,
        ("time", "features"): 360,
        ("time", "writing features"): pytest.approx(2.16),
        ("time", "training, 3 epochs"): 150,
        ("time", "reading features in training"): pytest.approx(3 * 1.08),
        ("time", "scoring one direction"): pytest.approx(50 * 100 / 1e6),
        ("memory", "data directory and index"): 500,
        ("memory", "CLIP embeddings in training"): 10 * 4 * 4,
        ("memory", "a batch of features"): pytest.approx(10 * 3.6 * 50 * 12 * 3),
    }
    shared = {(kind, what): value for kind, what, value, _ in plan_corpus.estimate(RATES, corpus, 10, 3, 4)}
    assert shared["time", "CLIP embeddings"] == 90 / 4
    assert shared["time", "features"] == 90 and shared["disk", "stored features"] == rows["disk", "stored features"]


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [("disk", 2.5e12, "2.5 TB"), ("memory", 12, "12.0 bytes"), ("time", 7200, "2.0 h"), ("time", 3, "3.0 s")],
)
def test_units(kind: str, value: float, shown: str) -> None:
    assert plan_corpus.readable(kind, value) == shown


def test_rates_are_measured_and_a_plan_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_corpus, "_clip_rates", lambda name, seconds: (3.0, 7.0, JOINT))  # 150 M parameters
    rates = plan_corpus._table_rates
    monkeypatch.setattr(plan_corpus, "_table_rates", lambda folder: rates(folder, 2000))
    words = ["--encoder", str(save_hubert(tmp_path / "hubert")), "--batch", "4", "--seconds", "0.01", "--folder"]
    monkeypatch.setattr(sys, "argv", ["plan_corpus.py", *words, str(tmp_path)])
    plan_corpus.main()
    printed = capsys.readouterr().out
    assert f"layers {STATES}, width {WIDTH}, joint {JOINT}" in printed
    seconds = 74_200 * 3600
    assert f"{seconds * 50 * STATES * WIDTH * 2 / 1e12:.1f} TB" in printed
    assert [line.split()[0] for line in printed.splitlines()[2:]] == ["disk"] * 5 + ["time"] * 7 + ["memory"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hubert"]
