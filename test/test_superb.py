"""egs/superb: settings, sweeps, the report, what is told of mistakes, and whole tasks (slow)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures import whole_model

from speechclip.checkpoint import save_checkpoint
from speechclip.compat import prepare
from speechclip.errors import UserError
from speechclip.report.markdown import read_block

RECIPE = Path(__file__).resolve().parents[1] / "egs" / "superb"
sys.path.insert(0, str(RECIPE / "local"))
import superb  # noqa: E402
import sweep  # noqa: E402
from report import write_report  # noqa: E402
from tasks import TASKS  # noqa: E402

needs_s3prl = pytest.mark.skipif(find_spec("s3prl") is None, reason="extra 's3prl' is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random SpeechCLIP."""
    folder, before = tmp_path_factory.mktemp("recipe"), Path.cwd()
    model, config = whole_model(folder, "parallel")
    os.chdir(folder)
    try:
        save_checkpoint(Path("exp") / "tiny" / "best", model, model.trained_state(), config, {"seed": 0})
    finally:
        os.chdir(before)
    return str(folder / "exp" / "tiny" / "best")


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_has_its_settings(name: str) -> None:
    task = TASKS[name]
    options = SimpleNamespace(task=name, pseudo="true", config="", overrides=[])
    settings = superb.configuration(options, task)
    if task.problem:
        assert settings["train"]["total_steps"] <= 50
        options.pseudo = "false"
        assert superb.configuration(options, task)["train"]["total_steps"] >= 30000  # SUPERB's own


@needs_s3prl
@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.problem])
def test_the_shipped_settings_are_s3prls_own(name: str) -> None:
    prepare()
    from omegaconf import OmegaConf
    from s3prl import problem

    own = OmegaConf.to_container(OmegaConf.create(getattr(problem, TASKS[name].problem)().default_config()))
    shipped = superb.configuration(SimpleNamespace(task=name, pseudo="false", config="", overrides=[]), TASKS[name])
    for key in ("build_dataset", "build_batch_sampler", "build_optimizer", "build_featurizer", "build_task"):
        assert shipped.get(key) == own.get(key), key
    assert shipped.get("build_downstream") == own.get("build_downstream")
    for key in ("total_steps", "gradient_accumulate", "gradient_clipping", "valid_metric"):
        assert shipped["train"][key] == own["train"][key], key


def test_layers_merge_and_an_unknown_key_is_named() -> None:
    base = {"train": {"total_steps": 5, "seed": 0}, "prepare_data": {}}
    assert sweep.merge(base, {"train": {"seed": 3}}, "x.yaml") == {
        "train": {"total_steps": 5, "seed": 3}, "prepare_data": {},
    }  # fmt: skip
    assert sweep.merge(base, {"prepare_data": {"new": 1}}, "x")["prepare_data"] == {"new": 1}
    with pytest.raises(UserError, match=r"x\.yaml: train\.steps: no such setting \(known here: total_steps, seed\)"):
        sweep.merge(base, {"train": {"steps": 3}}, "x.yaml")
    assert sweep.parse_overrides(["--a.b", "1e-1", "--a.c=[x, y]"]) == {"a": {"b": 0.1, "c": ["x", "y"]}}
    for words in (["a.b", "1"], ["--a.b"]):
        with pytest.raises(UserError, match="--name.of.setting"):
            sweep.parse_overrides(words)


@needs_s3prl
def test_the_baseline_is_the_same_encoder_without_the_head(checkpoint: str) -> None:
    def chosen(**given: str) -> list[tuple[str, str, bool]]:
        options = {"task": "ks", "upstream": "speechclip_local", "checkpoint": "", "baseline_checkpoint": ""}
        found = superb.upstreams_of(SimpleNamespace(**{**options, "baseline": superb.ENCODER, **given}))
        return [(item.name, item.checkpoint, item.encoder_only) for item in found]

    local, encoder = ("speechclip_local", checkpoint, False), ("speechclip_encoder_local", checkpoint, False)
    assert chosen(checkpoint=checkpoint) == [local, encoder]
    assert chosen(checkpoint=checkpoint, baseline="") == [local]
    assert chosen(checkpoint=checkpoint, baseline="hubert") == [local, ("hubert", "", False)]
    assert chosen(checkpoint=checkpoint, task="qbe") == [local]
    named = "speechclip_parallel_large"
    assert chosen(upstream=named) == [(named, "", False), (named, "", True)]
    assert chosen(upstream="hubert") == [("hubert", "", False)]
    assert sweep.Upstream(named, "", True).settings() == {"name": named, "extra_conf": {"head_layer": False}}
    assert sweep.Upstream("speechclip_local", checkpoint).label == "speechclip_local_tiny"
    with pytest.raises(UserError, match="speechclip_local wants one"):
        chosen()


def test_learning_rates() -> None:
    assert superb.learning_rates("1e-3 0.1", 5.0) == [0.001, 0.1] and superb.learning_rates("", 5.0) == [5.0]
    for words in ("fast", "0", "-1e-3"):
        with pytest.raises(UserError, match="--lr"):
            superb.learning_rates(words, 1.0)


def _finished(folder: Path, task: str, lr: float, valid: float, test: float) -> sweep.Run:
    config = {"build_optimizer": {"conf": {"lr": lr}}, "train": {"total_steps": 5}}
    run = sweep.Run(TASKS[task], sweep.Upstream("speechclip_local", ""), folder / f"lr_{lr:g}", config)
    run.folder.mkdir(parents=True)
    metric = TASKS[task].valid_metric
    result = {"settings": run.settings(), "valid": {metric: valid}, "test": {TASKS[task].metric: test}, "lr": lr}
    (run.folder / "result.json").write_text(json.dumps(result))
    return run


def test_validation_decides_a_sweep_and_what_is_done_is_not_repeated(tmp_path: Path) -> None:
    runs = [_finished(tmp_path / "ks", "ks", lr, valid, test) for lr, valid, test in
            ((0.1, 0.5, 0.9), (0.01, 0.7, 0.6), (0.001, 0.6, 0.8))]  # fmt: skip
    assert sweep.sweep(runs, 2, force=False)["lr"] == 0.01
    runs = [_finished(tmp_path / "asr", "asr", lr, valid, 0.5) for lr, valid in ((0.1, 0.5), (0.01, 0.7))]
    assert sweep.sweep(runs, 1, force=False)["lr"] == 0.1  # of error rates, the lower


def test_a_run_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    run = _finished(tmp_path, "ks", 0.1, 0.5, 0.5)
    run.config["train"]["total_steps"] = 6
    assert run.result() is None
    (run.folder / "settings.json").write_text(json.dumps({"config": {}, "weights": ""}))
    with pytest.raises(UserError, match="begun with other settings; --force true"):
        run.start()


@needs_s3prl
@pytest.mark.slow
def test_a_failed_command_is_told_by_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(UserError, match=r"/no/such\.yaml: No such file.* \(status 1; .*log has all\)$"):
        sweep.run_s3prl(["s3prl-main", "SuperbKS", "--config", "/no/such.yaml"], log)
    assert log.read_text().startswith("error: /no/such.yaml: No such file")


def test_layer_weights_are_the_softmax(tmp_path: Path) -> None:
    torch.save({"featurizer.weights": torch.tensor([0.0, 1.0986123])}, tmp_path / "s.pt")  # ln 3
    assert sweep.layer_weights(tmp_path / "s.pt") == [0.25, 0.75]


def _best(folder: Path, upstream: str, test: float, weights: list[float], against: str = "", tag: str = "") -> None:
    folder.mkdir(parents=True)
    facts = {
        "task": "sid", "tag": tag, "upstream": upstream, "baseline": "encoder" in upstream, "checkpoint": "a/best",
        "head": "encoder" not in upstream, "against": against,
        "corpus": "vox", "rates": [0.1, 0.01], "lr": 0.01, "step": 7, "test": {"accuracy": test, "loss": 1},
        "valid": {}, "layer_weights": weights, "seed": 0, "command": "./run.sh", "commit": "abc", "weights": "f",
    }  # fmt: skip
    (folder / "best.json").write_text(json.dumps(facts))


def test_the_report_merges_rows_and_draws_the_weights(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# SUPERB\n\nBy hand.\n")
    _best(tmp_path / "exp" / "sid" / "a", "speechclip_local", 0.875, [0.1, 0.2, 0.7])
    write_report(tmp_path / "exp", results)
    _best(tmp_path / "exp2" / "sid" / "b", "speechclip_encoder_local", 0.5, [0.4, 0.6])
    write_report(tmp_path / "exp2", results)
    text = results.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| SID")]
    assert "By hand." in text and text.count("<!-- results: begin superb -->") == 1
    assert [row[5] for row in rows[:2]] == ["50.00", "87.50"]  # both are kept, sorted by upstream
    assert rows[0][6] == "0.01 (0.1 0.01)" and rows[3][-3:] == ["0.100", "0.200", "0.700"]
    assert rows[2][-3:] == ["0.400", "0.600", "–"]  # an encoder alone has no head's state
    assert (tmp_path / "layer_weights.png").stat().st_size > 1000
    assert "### SUPERB" not in text  # nothing was compared
    with pytest.raises(UserError, match="no finished task"):
        write_report(tmp_path / "nothing", results)


def test_the_report_compares_with_the_baseline(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    _best(tmp_path / "exp" / "sid_long" / "encoder", "speechclip_encoder_local", 0.5, [0.4, 0.6], tag="long")
    _best(tmp_path / "exp" / "sid_long" / "a", "speechclip_local", 0.875, [0.1, 0.2, 0.7], "encoder", tag="long")
    _best(tmp_path / "exp" / "sid" / "a", "speechclip_local", 0.25, [0.1, 0.2, 0.7])
    write_report(tmp_path / "exp", results)
    tables = read_block(results.read_text(), "superb", "")
    [row] = tables["SUPERB"].rows
    assert (row["task"], row["metric"], row["upstream"]) == ("SID (long)", "accuracy", "speechclip_local")
    assert (row["test"], row["baseline"], row["baseline's test"]) == ("87.50", "speechclip_encoder_local", "50.00")
    assert len(tables["Scores"].rows) == 3  # a tag keeps rows apart


@needs_s3prl
def test_an_upstream_that_s3prl_has_not_got_is_named() -> None:
    ended = _run("--task", "ks", "--upstream", "speechclip_paralel_large", "--pseudo", "true")
    assert ended.returncode == 1
    told = "error: --upstream: s3prl has no upstream 'speechclip_paralel_large', did you mean 'speechclip_"
    assert ended.stderr.splitlines()[-1] == f"{told}parallel_large'?"


def _run(*words: str, cwd: Path = RECIPE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPEECHCLIP_PYTHON": sys.executable}
    return subprocess.run(
        [str(cwd / "run.sh"), *words], capture_output=True, text=True, timeout=1200, check=False, env=environment
    )


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--task", "tts"], 2, "invalid choice: 'tts'"),
        (["--task", "ks", "--checkpoint", "/no/such"], 1, "/no/such: no such checkpoint"),
        (["--task", "ks"], 1, "--checkpoint: speechclip_local wants one"),
        (["--task", "ks", "--checkpoint", "CKPT"], 1, "--corpus: give the folder of KS's corpus, or --pseudo true"),
        (["--task", "ks", "--checkpoint", "CKPT", "--corpus", "/no/such"], 1, "/no/such: no such folder"),
        (["--task", "ks", "--checkpoint", "CKPT", "--corpus", "/tmp", "--", "--train.steps", "3"], 1, "train.steps"),
        (["--task", "ks", "--nj", "0", "--checkpoint", "CKPT"], 1, "--nj: 0"),
        (["--task", "ks", "--checkpoint", "CKPT", "--device", "gpu"], 1, "--device: gpu: this torch sees none"),
        (["--tsk", "ks"], 2, "did you mean --task?"),
    ],
)
def test_what_is_wrong_is_one_line(checkpoint: str, words: list[str], status: int, told: str) -> None:
    ended = _run(*(checkpoint if word == "CKPT" else word for word in words))
    assert ended.returncode == status, ended.stderr
    assert told in ended.stderr and ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: ")


def _copy(folder: Path) -> Path:
    """The recipe in a repository of its own, so that its exp/ and data/ stay out of this one."""
    import shutil

    root = RECIPE.parents[1]
    for part in ("egs/superb", "egs/mini/local", "utils"):
        ignored = shutil.ignore_patterns("exp", "data", "RESULTS.md", "__pycache__")
        shutil.copytree(root / part, folder / part, ignore=ignored)
    (folder / "speechclip").symlink_to(root / "speechclip")
    return folder / "egs" / "superb"


@needs_s3prl
@pytest.mark.slow
def test_a_task_is_trained_resumed_and_reported(checkpoint: str, tmp_path: Path) -> None:
    recipe = _copy(tmp_path / "repository")
    words = ["--task", "ks", "--pseudo", "true", "--checkpoint", checkpoint, "--lr", "1e-3 1e-2", "--nj", "2"]
    words += ["--workers", "1"]
    ended = _run(*words, cwd=recipe)
    assert ended.returncode == 0, ended.stderr
    best: dict[str, Any] = json.loads((recipe / "exp/ks/speechclip_local_tiny/best.json").read_text())
    assert best["rates"] == [0.001, 0.01] and len(best["layer_weights"]) == 4
    results = (recipe / "RESULTS.md").read_text()
    assert "speechclip_encoder_local" in results
    assert "--lr '1e-3 1e-2' --nj 2" in results  # a command that can be pasted
    assert best["against"] == "speechclip_encoder_local_tiny" and "### SUPERB" in results
    assert "training" not in _run(*words, cwd=recipe).stdout  # all is done
    run = recipe / "exp/ks/speechclip_local_tiny/lr_0.001"
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()  # as if it had been cut while it was testing
    again = _run(*words, "--stop_stage", "1", cwd=recipe)
    assert again.returncode == 0 and "Loading checkpoints from" in (run / "log.txt").read_text()
    assert json.loads((run / "result.json").read_text()) == before


@needs_s3prl
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", [name for name in TASKS if name != "ks"])
def test_every_task_runs_on_generated_data(checkpoint: str, tmp_path: Path, name: str) -> None:
    if name == "qbe" and find_spec("dtw") is None:
        pytest.skip("dtw-python is not installed")
    recipe = _copy(tmp_path / "repository")
    ended = _run("--task", name, "--pseudo", "true", "--checkpoint", checkpoint, "--baseline=", "--stop_stage", "1",
                 cwd=recipe)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    pattern = "qbe/*/state_3/eval/benchmark.stdlist.xml" if name == "qbe" else f"{name}/*/best.json"
    assert len(list((recipe / "exp").glob(pattern))) == 1
    if name == "qbe":
        _check_detections(recipe / "exp" / "qbe" / "speechclip_local_tiny", checkpoint, recipe)


def _check_detections(folder: Path, checkpoint: str, recipe: Path) -> None:
    """Every query has a score in every document, what is done is not repeated, and other settings are refused."""
    from lxml import etree

    for split in ("dev", "eval"):
        root = etree.parse(str(folder / "state_0" / split / "benchmark.stdlist.xml")).getroot()
        scores = [[float(term.get("score")) for term in query] for query in root]
        assert [len(row) for row in scores] == [3, 3] and all(len(set(row)) == 3 for row in scores)
    words = ["--task", "qbe", "--pseudo", "true", "--checkpoint", checkpoint]
    again = _run(*words, cwd=recipe)
    assert again.returncode == 0 and "written" not in again.stdout and "no row in RESULTS.md" in again.stdout
    refused = _run(*words, "--", "--downstream_expert.silence_frame", "3", cwd=recipe)
    assert refused.returncode == 1 and "made with other settings; --force true" in refused.stderr


_ORPHAN = """
import multiprocessing, sys, threading, time
sys.path.insert(0, {local!r})

def work(pipe):
    import os, sweep
    threading.Thread(target=sweep._end_with_parent, daemon=True).start()
    pipe.send(os.getpid())
    time.sleep(300)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    context.Process(target=work, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    time.sleep(300)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_training_ends_with_the_recipe_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text(_ORPHAN.format(local=str(RECIPE / "local")))
    environment = {**os.environ, "PYTHONPATH": str(RECIPE.parents[1])}
    recipe = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert recipe.stdout is not None
    training = int(recipe.stdout.readline())
    os.kill(training, 0)  # it lives
    recipe.kill()
    recipe.wait(timeout=60)
    deadline = time.monotonic() + 60
    while _alive(training) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(training)


def _alive(process: int) -> bool:
    """Whether a process runs; one that has ended and nobody has asked for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
