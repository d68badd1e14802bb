"""egs/superb: settings, sweeps, the report, errors, and complete tasks (slow)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fixtures import whole_model

from speechclip.checkpoint.folder import save_checkpoint
from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
from speechclip.common.files import only_one

RECIPE = Path(__file__).resolve().parents[2] / "egs" / "superb"
sys.path.insert(0, str(RECIPE / "local"))
import superb  # noqa: E402
import sweep  # noqa: E402
from report import commit_report, read_rows, write_report  # noqa: E402
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
def test_configuration_of_every_task_is_complete(name: str) -> None:
    task = TASKS[name]
    options = SimpleNamespace(task=name, pseudo="true", config="", overrides=[])
    settings = superb.configuration(options, task)
    if task.problem:
        assert settings["train"]["total_steps"] <= 50
        options.pseudo = "false"
        assert superb.configuration(options, task)["train"]["total_steps"] >= 30000  # SUPERB's own


@needs_s3prl
@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.problem])
def test_configuration_equals_s3prl(name: str) -> None:
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


def test_merge_names_an_unknown_key() -> None:
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
def test_upstreams_of_chooses_the_baseline(checkpoint: str) -> None:
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
    for given, message in (
        ({}, "^--checkpoint: not set, but speechclip_local needs"),
        ({"checkpoint": checkpoint, "baseline": "apc_local"}, "^--baseline_checkpoint: not set, but apc_local needs"),
        ({"checkpoint": checkpoint, "baseline": "hubrt"}, "^--baseline: s3prl has no upstream 'hubrt', did you mean"),
    ):
        with pytest.raises(UserError, match=message):
            chosen(**given)


def test_learning_rates_reads_numbers() -> None:
    assert superb.learning_rates("1e-3 0.1", 5.0) == [0.001, 0.1] and superb.learning_rates("", 5.0) == [5.0]
    for words in ("fast", "0", "-1e-3"):
        with pytest.raises(UserError, match="--lr"):
            superb.learning_rates(words, 1.0)


def _finished(
    folder: Path, task: str, lr: float, valid: float, test: float, loss: float = 0.0, **more: Any
) -> sweep.Run:
    config = {"build_optimizer": {"conf": {"lr": lr}}, "train": {"total_steps": 5}}
    run = sweep.Run(TASKS[task], sweep.Upstream("speechclip_local", ""), folder / f"lr_{lr:g}", config)
    run.folder.mkdir(parents=True)
    metric = TASKS[task].valid_metric
    found = {metric: valid, "loss": loss}
    result = {"settings": run.settings(), "valid": found, "test": {TASKS[task].metric: test}, "lr": lr, **more}
    (run.folder / "result.json").write_text(json.dumps(result))
    return run


def test_sweep_is_decided_by_validation(tmp_path: Path) -> None:
    runs = [_finished(tmp_path / "ks", "ks", lr, valid, test) for lr, valid, test in
            ((0.1, 0.5, 0.9), (0.01, 0.7, 0.6), (0.001, 0.6, 0.8))]  # fmt: skip
    assert sweep.sweep(runs, 2, force=False)["lr"] == 0.01
    runs = [_finished(tmp_path / "asr", "asr", lr, valid, 0.5) for lr, valid in ((0.1, 0.5), (0.01, 0.7))]
    assert sweep.sweep(runs, 1, force=False)["lr"] == 0.1  # the lower error rate


def test_folds_are_averaged_and_share_a_rate(tmp_path: Path) -> None:
    runs = []
    for fold, (low, high) in enumerate([((0.4, 0.5), (0.9, 0.9)), ((0.8, 0.7), (0.2, 0.1))]):
        for lr, (valid, test) in ((0.01, low), (0.1, high)):
            run = _finished(
                tmp_path / f"fold_{fold}", "er", lr, valid, test, step=10 * (fold + 1), layer_weights=[fold, 1 - fold]
            )
            runs.append(dataclasses.replace(run, fold=fold))
    best = sweep.sweep(runs, 2, force=False)
    assert best["lr"] == 0.01 and best["valid"]["accuracy"] == pytest.approx(0.6)  # 0.55 for the other rate
    assert best["test"] == {"accuracy": pytest.approx(0.6)} and best["folds"] == {"0": 0.5, "1": 0.7}
    assert best["step"] == [10, 20] and best["layer_weights"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("task", "words", "folds"),
    [
        ("er", "", [0, 1, 2, 3, 4]),
        ("er", "3 0", [3, 0]),
        ("er", "5", "--folds: '5' is not one of: 0 1 2 3 4"),
        ("er", "1 1", "--folds: '1' is not one of: 0 1 2 3 4, each at most once."),
        ("ks", "", [0]),
        ("ks", "0", "--folds: KS has no folds. Leave the option out."),
    ],
)
def test_folds_of_reads_numbers(task: str, words: str, folds: list[int] | str) -> None:
    if isinstance(folds, list):
        assert superb.folds_of(words, TASKS[task]) == folds
        return
    with pytest.raises(UserError, match=folds):
        superb.folds_of(words, TASKS[task])


def test_each_fold_has_its_folder_and_test_set(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = SimpleNamespace(
        task="er", pseudo="true", config="", overrides=[], tag="", seed=0, lr="1e-3 1e-2", folds="0 4", device="cpu",
        workers=0,
    )  # fmt: skip
    runs = superb.runs_of(options, TASKS["er"], tmp_path, sweep.Upstream("speechclip_local", checkpoint))
    assert [(str(run.folder.relative_to(tmp_path / "exp/er/speechclip_local_tiny")), run.fold) for run in runs] == [
        ("fold_0/lr_0.001", 0), ("fold_0/lr_0.01", 0), ("fold_4/lr_0.001", 4), ("fold_4/lr_0.01", 4),
    ]  # fmt: skip
    assert [run.config["prepare_data"]["test_fold"] for run in runs] == [0, 0, 4, 4]
    options.overrides = ["--prepare_data.test_fold", "2"]
    with pytest.raises(UserError, match="prepare_data.test_fold: is set by --folds"):
        superb.runs_of(options, TASKS["er"], tmp_path, sweep.Upstream("speechclip_local", checkpoint))


def test_run_refuses_a_folder_with_other_settings(tmp_path: Path) -> None:
    run = _finished(tmp_path, "ks", 0.1, 0.5, 0.5)
    run.config["train"]["total_steps"] = 6
    assert run.result() is None
    (run.folder / "settings.json").write_text(json.dumps({"config": {}, "weights": ""}))
    with pytest.raises(UserError, match="has other settings. Use --force true"):
        run.start()


@pytest.mark.parametrize("saved", [False, True])
def test_force_keeps_the_result_until_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool) -> None:
    run = _finished(tmp_path, "ks", 0.1, 0.5, 0.5)
    before = (run.folder / "result.json").read_text()

    def fails(words: object, log: Path, what: str) -> None:
        assert not run.folder.joinpath("result.json").exists()
        if saved:
            (run.folder / "train" / "step_1").mkdir(parents=True)
        raise UserError("out of memory")

    monkeypatch.setattr(sweep.Run, "_remove_cut_checkpoints", lambda self: None)
    monkeypatch.setattr(sweep, "run_s3prl", fails)
    for _ in range(2):  # a second failure does not lose the result, either
        with pytest.raises(UserError, match="out of memory"):
            sweep.sweep([run], 1, force=True)
        at = run.folder.with_name("lr_0.1.old") if saved else run.folder
        assert (at / "result.json").read_text() == before
        assert run.folder.with_name("lr_0.1.old").exists() == saved
    with only_one(run.folder), pytest.raises(UserError, match="another run is at work in it"):
        sweep.sweep([run], 1, force=True)
    assert (at / "result.json").read_text() == before
    monkeypatch.setattr(sweep, "run_s3prl", lambda words, log, what: None)
    monkeypatch.setattr(sweep.Run, "_collect", lambda self: {**json.loads(before), "step": 7})
    assert sweep.sweep([run], 1, force=True)["step"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["lr_0.1"]


@needs_s3prl
@pytest.mark.slow
def test_run_s3prl_reports_the_last_line_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(
        UserError, match=r"^KS on /x: /no/such\.yaml: No such file.* \(status 1; the full output is in .*log\)$"
    ):
        sweep.run_s3prl(["s3prl-main", "SuperbKS", "--config", "/no/such.yaml"], log, "KS on /x")
    assert log.read_text().startswith("error: /no/such.yaml: No such file")


def test_sweep_breaks_ties_and_warns_at_the_edge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def best(name: str, rows: list[tuple[float, float, float]], task: str = "ks") -> float:
        runs = [_finished(tmp_path / name, task, lr, valid, 0.5, loss=loss) for lr, valid, loss in rows]
        return float(sweep.sweep(runs, 1, force=False)["lr"])

    assert best("loss", [(0.1, 0.5, 0.3), (0.01, 0.5, 0.2), (0.001, 0.5, 0.4)]) == 0.01
    assert "of --lr" not in capsys.readouterr().out  # it is not at the edge
    assert best("rate", [(0.1, 0.5, 0.3), (0.001, 0.5, 0.3), (0.01, 0.5, 0.3)]) == 0.001
    assert "of --lr" not in capsys.readouterr().out  # all score equally
    assert best("tie", [(0.01, 0.5, 0.2), (0.003, 0.5, 0.3), (0.001, 0.4, 0.1)]) == 0.01
    assert "of --lr" not in capsys.readouterr().out  # a rate inside scores equally
    assert best("nan", [(0.01, float("nan"), 0.1), (0.1, 0.5, float("nan")), (0.001, 0.5, 9.0)]) == 0.001
    assert "of --lr" not in capsys.readouterr().out
    assert best("first", [(0.1, 0.7, 3.0), (0.01, 0.5, 0.2)]) == 0.1  # the loss only breaks ties
    assert "the best rate 0.1 is the highest of --lr. Try a higher one." in capsys.readouterr().out
    assert best("wer", [(0.1, 0.7, 0.1), (0.01, 0.6, 0.2), (0.001, 0.5, 0.1)], "asr") == 0.001
    assert "the best rate 0.001 is the lowest of --lr. Try a lower one." in capsys.readouterr().out
    assert best("one", [(0.1, 0.7, 0.1)]) == 0.1 and "of --lr" not in capsys.readouterr().out


def _saved(folder: Path, at: float, step: int, weights: list[float] = [0.0, 0.0]) -> Path:  # noqa: B006
    """Write a checkpoint as s3prl does, ``config.yaml`` last, at time ``at`` in seconds."""
    for name in ("model", "task"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    torch.save({"featurizer.weights": torch.tensor(weights)}, folder / "model" / "state_dict.pt")
    for name in ("task/state.pt", "optimizer.pt", "config.yaml"):
        (folder / name).write_text("null\n")
    stats = {"global_step": step, "epoch": 0, "valid_best_metrics": {"accuracy": 0.5, "der": 0.3}}
    (folder / "training_stats.yaml").write_text(yaml.safe_dump(stats))
    os.utime(folder / "model" / "state_dict.pt", (at - 1, at - 1))
    os.utime(folder / "config.yaml", (at, at))
    return folder


def _begun(folder: Path, task: str, total: int = 20, **config: Any) -> sweep.Run:
    steps = {"total_steps": total, "eval_step": 10}
    settings = {"build_optimizer": {"conf": {"lr": 0.1}}, "train": steps, **config}
    return sweep.Run(TASKS[task], sweep.Upstream("speechclip_local", ""), folder, settings)


def test_run_removes_incomplete_checkpoints(tmp_path: Path) -> None:
    run, train = _begun(tmp_path, "ks"), tmp_path / "train"
    best = _saved(train / "valid_best", 100, 10)
    for step in (5, 10, 15):
        _saved(train / f"step_{step}", 100 + step, step)
    _saved(train / "step_20", 200, 20)
    (train / "step_20" / "config.yaml").write_text("")  # opened, and interrupted before it was written
    (train / "step_15" / "optimizer.pt").unlink()  # being removed: s3prl keeps the last two
    run._remove_cut_checkpoints()
    assert sorted(path.name for path in train.iterdir()) == ["step_10", "step_5", "valid_best"]
    assert yaml.safe_load((train / "step_10" / "training_stats.yaml").read_text())["valid_best_metrics"]
    # interrupted while it was overwritten: new weights, old config.yaml
    os.utime(best / "model" / "state_dict.pt", (150, 150))
    _saved(train / "step_20", 200, 20)
    run._remove_cut_checkpoints()
    assert sorted(path.name for path in train.iterdir()) == ["step_10", "step_5"]  # no validation follows step 20
    stats = yaml.safe_load((train / "step_10" / "training_stats.yaml").read_text())
    assert stats == {"global_step": 10, "epoch": 0, "valid_best_metrics": {}}  # so that the next one is the best
    run._remove_cut_checkpoints()  # the rest is complete
    assert len(list(train.iterdir())) == 2


def test_run_keeps_asv_steps_without_validation(tmp_path: Path) -> None:
    run = _begun(tmp_path, "asv")
    _saved(tmp_path / "train" / "step_20", 200, 20)
    run._remove_cut_checkpoints()
    assert (tmp_path / "train" / "step_20").is_dir()


def test_run_reports_the_best_asv_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tested(words: list[str], log: Path, what: str) -> None:
        for step, error, weights in ((10, 0.3, [0.0, 0.0]), (20, 0.1, [0.0, 1.0986123]), (30, 0.2, [0.0, 0.0])):
            _saved(tmp_path / "train" / f"step_{step}", step, step, weights)
            file = tmp_path / "evaluate" / "test_trial" / f"step_{step}" / "result.yaml"
            file.parent.mkdir(parents=True)
            file.write_text(yaml.safe_dump({"EER": error, "minDCF": 1.0}))
        (tmp_path / "evaluate" / "test_trial" / "best_result.yaml").write_text("EER: 0.1\n")

    monkeypatch.setattr(sweep, "run_s3prl", tested)
    run = _begun(tmp_path, "asv", 30)
    run.start()
    result = run.result()
    assert result is not None
    assert (result["step"], result["test"]["EER"], result["layer_weights"]) == (20, 0.1, [0.25, 0.75])
    assert result["model"].endswith("train/step_20")


def test_sweep_scores_a_finished_sd_run_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def tested(words: list[str], log: Path, what: str) -> None:
        stop = yaml.safe_load((tmp_path / "config.yaml").read_text())["stop"]
        asked.append(stop)
        _saved(tmp_path / "train" / "valid_best", 10, 10)
        folder = tmp_path / "evaluate" / "valid_best" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.yaml").write_text("{der: 0.3, loss: 1.0}\n")
        if stop > 2:
            (folder / "dscore.yaml").write_text("{der: 12.5, threshold: 0.4, median_filter: 11}\n")

    monkeypatch.setattr(sweep, "run_s3prl", tested)
    for stop, wanted in (
        (2, {"der": 0.3, "loss": 1.0}),
        (3, {"der": 0.3, "loss": 1.0, "dscore_der": 12.5, "dscore_threshold": 0.4, "dscore_median_filter": 11}),
    ):
        best = sweep.sweep([_begun(tmp_path, "sd", stop=stop)], 1, force=False)
        assert best["test"] == wanted and best["step"] == 10
    sweep.sweep([_begun(tmp_path, "sd", stop=2)], 1, force=False)  # the result exists
    assert asked == [2, 3]


def test_run_refuses_a_second_process(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(UserError, match=rf"another run is at work in it \(process {os.getpid()}\)"):
        _begun(tmp_path, "ks", 20).start()


def test_run_without_checkpoints_accepts_new_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str], log: Path, what: str) -> None:
        raise UserError(f"{what}: no such file")

    monkeypatch.setattr(sweep, "run_s3prl", fail)
    (tmp_path / "log.txt").write_text("")
    for total in (20, 40):  # the second is not refused
        (tmp_path / "train_utt_len").mkdir()  # s3prl's cache of a corpus
        with pytest.raises(UserError, match="no such file"):
            _begun(tmp_path, "ks", total).start()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "log.txt"]
    _saved(tmp_path / "train" / "step_10", 10, 10)
    with pytest.raises(UserError, match="no such file"):
        _begun(tmp_path, "ks", 20).start()
    with pytest.raises(UserError, match="has other settings"):
        _begun(tmp_path, "ks", 40).start()


def test_reason_gives_the_place_of_an_assertion() -> None:
    frame = '  File "/x/site-packages/s3prl/{}", line {}, in f\n    {}\n    ^^^^\n'
    pool = frame.format("dataio/a.py", 92, "assert len(found) == 1") + "AssertionError\n"
    told = f'{pool}\n"""\n{frame.format("dataio/a.py", 51, "wavs = Parallel(")}AssertionError\n'
    assert sweep.reason(told) == "AssertionError in s3prl/dataio/a.py:92: assert len(found) == 1"
    told = f"train:  5%|#\rtrain: 9%|##\n{frame.format('task/b.py', 7, 'x = d[key]')}KeyError: 'Ses01'\n"
    assert sweep.reason(told) == "KeyError: 'Ses01' in s3prl/task/b.py:7: x = d[key]"
    assert sweep.reason(f"{pool}error: a.wav: no such audio file\n") == "a.wav: no such audio file"
    assert sweep.reason("") == "no output"


def test_configuration_refuses_steps_without_a_checkpoint() -> None:
    def options(task: str, *words: str) -> SimpleNamespace:
        return SimpleNamespace(task=task, pseudo="false", config="", overrides=list(words))

    superb.configuration(options("ks", "--train.total_steps", "5000"), TASKS["ks"])
    for task, words, message in (
        (
            "ks",
            ["--train.total_steps", "4999"],
            "train.total_steps: 4999, but train.eval_step is 5000, so KS would have",
        ),
        ("asv", ["--train.total_steps", "1000"], "train.save_step is 10000, so ASV would have no checkpoint"),
        ("ks", ["--train.eval_step", "0"], "train.eval_step: 0; must be a number of steps"),
        ("ks", ["--train.total_steps", "many"], "train.total_steps: many"),
    ):
        with pytest.raises(UserError, match=message):
            superb.configuration(options(task, *words), TASKS[task])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set HOME to an empty folder next to the working directory."""
    (tmp_path / "me").mkdir()
    for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # monkeypatch then restores the variable
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "me"


def test_take_home_keeps_earlier_downloads(home: Path, tmp_path: Path) -> None:
    downloads = home / ".cache" / "s3prl" / "download"
    downloads.mkdir(parents=True)
    for name in ("hubert.pt", "lexicon.txt", "cut.pt", "x.lock"):
        (downloads / name).write_text("" if name == "cut.pt" else "real")
    own = tmp_path / "made" / ".cache" / "s3prl" / "download"
    own.mkdir(parents=True)
    (own / "lexicon.txt").write_text("own")
    (own / "hubert.pt").symlink_to("/no/such/file")  # a broken link
    superb.take_home(tmp_path / "made")
    assert os.environ["HOME"] == str(tmp_path / "made") and os.environ["HF_HOME"] == str(home / ".cache/huggingface")
    assert (own / "hubert.pt").read_text() == "real" and (own / "lexicon.txt").read_text() == "own"
    assert sorted(path.name for path in own.iterdir()) == ["hubert.pt", "lexicon.txt"]
    os.environ["HOME"] = str(home)
    superb.take_home(tmp_path / "bare")  # a home without downloads shares the real ones
    (tmp_path / "bare" / ".cache" / "s3prl" / "download" / "new.pt").write_text("new")
    assert (downloads / "new.pt").read_text() == "new"


def test_place_speaker_list_prefers_the_corpus(home: Path, tmp_path: Path) -> None:
    corpus, mine = tmp_path / "vox", home / ".cache" / "s3prl" / "iden_split.txt"
    corpus.mkdir()
    mine.parent.mkdir(parents=True)
    mine.write_text("")  # as after a failed `wget -O`
    assert superb.place_speaker_list(corpus) == mine and not mine.exists()
    mine.write_text("3 all\n")
    (corpus / "iden_split.txt").write_text("")
    assert superb.place_speaker_list(corpus) == mine and mine.read_text() == "3 all\n"
    (corpus / "iden_split.txt").write_text("1 own\n")
    found = superb.place_speaker_list(corpus)
    assert found == Path(os.environ["HOME"]) / ".cache" / "s3prl" / "iden_split.txt" and found != mine
    assert found.read_text() == "1 own\n" and mine.read_text() == "3 all\n"  # the user's stays


def test_train_reports_a_missing_speaker_list(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def downloads_nothing(runs: list[sweep.Run], jobs: int, force: bool) -> Any:
        (home / ".cache" / "s3prl" / "iden_split.txt").write_text("")
        raise UserError("SID on vox: IndexError: list index out of range")

    monkeypatch.setattr(superb, "sweep", downloads_nothing)
    corpus = tmp_path / "vox"
    corpus.mkdir()
    options = SimpleNamespace(task="sid", pseudo="false", config="", overrides=[], lr="", seed=0, tag="", device="cpu",
                              workers=0, nj=1, folds="", force="false")  # fmt: skip
    with pytest.raises(UserError) as caught:
        superb.train(options, TASKS["sid"], corpus, [sweep.Upstream("hubert", "")])
    message = str(caught.value)
    assert message.startswith(f"{corpus}/iden_split.txt: is missing")
    assert f"{home}/.cache/s3prl/iden_split.txt." in message
    assert not (home / ".cache" / "s3prl" / "iden_split.txt").exists()  # the next run would read it


def test_relative_keeps_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = "https://example.org/a.ckpt"
    assert superb._relative(url) == url and superb._relative(str(tmp_path / "a" / "best")) == "a/best"


def test_commit_ignores_the_picture_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechclip.common import provenance as module

    root = tmp_path / "clone"
    for name in ("speechclip/common/provenance.py", "egs/superb/layer_weights.png", "egs/superb/run.sh"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("one")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(module, "__file__", str(root / "speechclip" / "common" / "provenance.py"))
    (root / "egs/superb/layer_weights.png").write_text("two")
    assert not module.commit().endswith("-dirty")
    (root / "egs/superb/run.sh").write_text("two")
    assert module.commit().endswith("-dirty")


def test_layer_weights_are_a_softmax(tmp_path: Path) -> None:
    torch.save({"featurizer.weights": torch.tensor([0.0, 1.0986123])}, tmp_path / "s.pt")  # ln 3
    assert sweep.layer_weights(tmp_path / "s.pt") == [0.25, 0.75]


def _best(folder: Path, upstream: str, accuracy: float, weights: list[float], **changes: Any) -> None:
    folder.mkdir(parents=True)
    facts = {
        "task": "sid", "tag": "", "upstream": upstream, "baseline": "encoder" in upstream, "checkpoint": "a/best",
        "head": "encoder" not in upstream, "against": "",
        "corpus": "vox", "rates": [0.1, 0.01], "lr": 0.01, "step": 7, "test": {"accuracy": accuracy, "loss": 1},
        "valid": {}, "layer_weights": weights, "folds": {}, "seed": 0, "command": "./run.sh", "commit": "abc",
        "weights": "f",
        **changes,
    }  # fmt: skip
    (folder / "best.json").write_text(json.dumps(facts))


def _cells(text: str, task: str = "SID") -> list[list[str]]:
    """Return the cells of all table rows of a task."""
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {task}")
    ]


def test_report_writes_rows_and_draws_weights(tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    _best(exp / "sid" / "a", "speechclip_local", 0.875, [0.1, 0.2, 0.7])
    _best(exp / "sid" / "b", "speechclip_encoder_local", 0.5, [0.4, 0.6])
    write_report(exp)
    text = (exp / "RESULTS.md").read_text()
    rows = _cells(text)
    assert [row[5] for row in rows[:2]] == ["50.00", "87.50"]  # sorted by upstream
    assert rows[1][6] == "0.01 (0.1 0.01)" and rows[3][-3:] == ["0.100", "0.200", "0.700"]
    assert rows[2][-3:] == ["0.400", "0.600", "–"]  # an encoder alone has no state of a head
    assert (exp / "layer_weights.png").stat().st_size > 1000
    assert "### SUPERB" not in text  # nothing was compared
    assert [row["test"] for row in read_rows(exp / "results.jsonl")] == [50.0, 87.5]
    with pytest.raises(UserError, match="holds no finished task"):
        write_report(tmp_path / "nothing")


def test_report_shows_the_score_of_each_fold(tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    _best(exp / "sid" / "a", "speechclip_local", 0.875, [0.1, 0.2, 0.7])
    folds = {"folds": {"0": 0.5, "3": 0.75}, "step": [7, 9]}
    _best(exp / "er" / "a", "speechclip_local", 0.625, [0.1, 0.2, 0.7], task="er", **folds)
    write_report(exp)
    text = (exp / "RESULTS.md").read_text()
    assert _cells(text, "ER")[0][5:9] == ["62.50", "0: 50.00, 3: 75.00", "0.01 (0.1 0.01)", "7 9"]
    assert _cells(text)[0][5:9] == ["87.50", "–", "0.01 (0.1 0.01)", "7"]


def test_report_compares_with_the_baseline(tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    _best(exp / "sid_long" / "encoder", "speechclip_encoder_local", 0.5, [0.4, 0.6], tag="long")
    _best(exp / "sid_long" / "a", "speechclip_local", 0.875, [0.1, 0.2, 0.7], tag="long", against="encoder")
    _best(exp / "sid" / "a", "speechclip_local", 0.25, [0.1, 0.2, 0.7])
    write_report(exp)
    text = (exp / "RESULTS.md").read_text()
    [row] = _cells(text[text.index("### SUPERB") : text.index("### Scores")])
    assert row[:4] == ["SID (long)", "accuracy", "vox", "speechclip_local"]
    assert row[5:8] == ["87.50", "speechclip_encoder_local", "50.00"]
    assert len(_cells(text[text.index("### Scores") : text.index("### Layer weights")])) == 3  # a tag keeps rows apart


def test_commit_report_merges_and_labels_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[list[str]] = []
    monkeypatch.setattr(Axes, "set_yticks", lambda self, ticks, labels: drawn.append(labels))
    weights = [0.1, 0.2, 0.7]
    (tmp_path / "RESULTS.template.md").write_text("# SUPERB\n\nBy hand.\n\n<!-- tables: scores -->\n")
    changes: list[dict[str, Any]] = [{}, {"tag": "long"}, {"seed": 1}, {"corpus": "other"}, {"checkpoint": "b/best"}]
    for number, change in enumerate(changes):  # each from its own exp/
        _best(tmp_path / f"exp{number}" / "sid" / "a", "speechclip_local", 0.5, weights, **change)
        commit_report(tmp_path / f"exp{number}", tmp_path)
    _best(tmp_path / "exp9" / "sid" / "b", "speechclip_encoder_local", 0.5, [0.4, 0.6])
    commit_report(tmp_path / "exp9", tmp_path)
    assert drawn[0] == ["SID, speechclip_local, seed 0\na, vox"]
    assert len(drawn[-1]) == len(set(drawn[-1])) == len(changes)  # an encoder alone has no weight of a head
    assert {"SID (long), speechclip_local, seed 0\na, vox", "SID, speechclip_local, seed 1\na, vox"} <= set(drawn[-1])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "By hand." in text and len(_cells(text)) == len(changes) + 1
    commit_report(tmp_path / "exp0", tmp_path)  # a row that is known
    commit_report(tmp_path / "nothing", tmp_path)  # renders only
    assert (tmp_path / "RESULTS.md").read_text() == text


def test_commit_report_refuses_uncommitted_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RESULTS\.template\.md: is missing"):
        commit_report(tmp_path / "exp", tmp_path)
    (tmp_path / "RESULTS.template.md").write_text("")
    _best(tmp_path / "exp" / "sid" / "a", "speechclip_local", 0.5, [0.1, 0.2, 0.7], commit="abc-dirty")
    with pytest.raises(UserError, match="SID was made by uncommitted code"):
        commit_report(tmp_path / "exp", tmp_path)
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize("line", ["{", "[1]", '{"task": "SID"}'])
def test_read_rows_names_a_damaged_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"results\.jsonl: line 1 is not a row of results"):
        read_rows(tmp_path / "results.jsonl")


def test_committed_results_are_rendered_from_their_data(tmp_path: Path) -> None:
    for name in ("RESULTS.template.md", "results.jsonl"):
        shutil.copy(RECIPE / name, tmp_path / name)
    commit_report(tmp_path / "exp", tmp_path)
    for name in ("RESULTS.md", "results.jsonl"):
        assert (tmp_path / name).read_text() == (RECIPE / name).read_text(), "run local/report.py --commit_to ."


def test_report_prefers_the_der_of_the_scorer(tmp_path: Path) -> None:
    exp, weights = tmp_path / "exp", [0.1, 0.2, 0.7]
    for test, metric, value in (
        ({"der": 0.25}, "DER by frames", "25.00"),
        ({"der": 0.25, "dscore_der": 12.5, "dscore_threshold": 0.4}, "DER", "12.50"),
    ):
        shutil.rmtree(exp, ignore_errors=True)
        _best(exp / "sd" / "a", "speechclip_local", 0.0, weights, task="sd", test=test)
        write_report(exp)
        row = _cells((exp / "RESULTS.md").read_text(), "SD")[0]
        assert (row[1], row[5]) == (metric, value)


@needs_s3prl
def test_recipe_suggests_a_known_upstream() -> None:
    ended = _run("--task", "ks", "--upstream", "speechclip_paralel_large", "--pseudo", "true")
    assert ended.returncode == 1
    message = "error: --upstream: s3prl has no upstream 'speechclip_paralel_large', did you mean 'speechclip_"
    assert ended.stderr == f"{message}parallel_large'?\n"


def _run(*words: str, cwd: Path = RECIPE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPEECHCLIP_PYTHON": sys.executable}
    return subprocess.run(
        [str(cwd / "run.sh"), *words], capture_output=True, text=True, timeout=1200, check=False, env=environment
    )


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--task", "tts"], 2, "invalid choice: 'tts'"),
        (["--task", "ks", "--checkpoint", "/no/such"], 1, "/no/such: no such checkpoint"),
        (["--task", "ks"], 1, "--checkpoint: not set, but speechclip_local needs a checkpoint"),
        (
            ["--task", "ks", "--checkpoint", "CKPT"],
            1,
            "--corpus: not set. Give the folder of KS's corpus, or use --pseudo",
        ),
        (["--task", "ks", "--checkpoint", "CKPT", "--corpus", "/no/such"], 1, "/no/such: no such folder"),
        (["--task", "ks", "--checkpoint", "CKPT", "--corpus", "/tmp", "--", "--train.steps", "3"], 1, "train.steps"),
        (["--task", "ks", "--nj", "0", "--checkpoint", "CKPT"], 1, "--nj: 0"),
        (["--task", "ks", "--checkpoint", "CKPT", "--device", "gpu"], 1, "--device: gpu: torch finds no GPU"),
        (["--task", "ks", "--checkpoint", "CKPT", "--scale", "0"], 1, "--scale: 0; must be at least 1"),
        (["--task", "ks", "--stop_stage", "0"], 1, "--corpus: not set"),  # the corpus alone needs no checkpoint
        (
            ["--task", "ks", "--checkpoint", "CKPT", "--corpus", "/tmp", "--", "--train.total_steps", "1000"],
            1,
            "train.total_steps: 1000, but train.eval_step is 5000, so KS would have no checkpoint to test",
        ),
        (["--tsk", "ks"], 2, "did you mean --task?"),
    ],
)
def test_recipe_reports_a_mistake_in_one_line(checkpoint: str, words: list[str], status: int, message: str) -> None:
    ended = _run(*(checkpoint if word == "CKPT" else word for word in words))
    assert ended.returncode == status, ended.stderr
    assert message in ended.stderr and ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: ")


@pytest.fixture
def bad(checkpoint: str, tmp_path: Path) -> dict[str, str]:
    """Checkpoints that exist but cannot be read, and the error of each."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(checkpoint, tmp_path / "cut")
    (tmp_path / "cut" / "SHA256SUMS").unlink()
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    told = {"empty": "empty/model.safetensors: is missing", "junk.ckpt": "junk.ckpt: ",
            "cut": "cut/model.safetensors: damaged or truncated"}  # fmt: skip
    return {str(tmp_path / name): message for name, message in told.items()}


def test_recipe_checks_checkpoints_before_the_corpus(checkpoint: str, bad: dict[str, str]) -> None:
    good = sweep.Upstream("speechclip_local", checkpoint)
    superb.check_checkpoints([good, sweep.Upstream("hubert", ""), sweep.Upstream("speechclip_url", "https://a/b.ckpt")])
    for path, message in bad.items():
        with pytest.raises(UserError, match=message):
            superb.check_checkpoints([good, sweep.Upstream(superb.ENCODER, path)])
        superb.check_checkpoints([sweep.Upstream("hubert_local", path)])  # s3prl reads it
    ended = _run("--task", "ks", "--corpus", "/no/such", "--checkpoint", checkpoint, "--baseline_checkpoint", path)
    assert ended.returncode == 1 and message in ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_report_needs_no_checkpoint(tmp_path: Path) -> None:
    recipe = _copy(tmp_path / "repository")
    _best(recipe / "exp" / "sid" / "a", "speechclip_local", 0.875, [0.1, 0.2, 0.7])
    ended = _run("--task", "sid", "--stage", "2", cwd=recipe)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "87.50" in (recipe / "exp" / "RESULTS.md").read_text()
    assert not (recipe / "RESULTS.md").exists()  # the clone stays clean


def _copy(folder: Path) -> Path:
    """Copy the recipe into another repository, so that its exp/ and data/ stay out of this one."""
    root = RECIPE.parents[1]
    for part in ("egs/superb", "egs/mini/local", "utils"):
        ignored = shutil.ignore_patterns("exp", "data", "RESULTS.md", "__pycache__")
        shutil.copytree(root / part, folder / part, ignore=ignored)
    (folder / "speechclip").symlink_to(root / "speechclip")
    return folder / "egs" / "superb"


@needs_s3prl
@pytest.mark.slow
def test_task_is_trained_resumed_and_reported(checkpoint: str, tmp_path: Path) -> None:
    recipe = _copy(tmp_path / "repository")
    words = ["--task", "ks", "--pseudo", "true", "--checkpoint", checkpoint, "--lr", "1e-3 1e-2", "--nj", "2"]
    words += ["--workers", "1"]
    ended = _run(*words, cwd=recipe)
    assert ended.returncode == 0, ended.stderr
    best: dict[str, Any] = json.loads((recipe / "exp/ks/speechclip_local_tiny/best.json").read_text())
    assert best["rates"] == [0.001, 0.01] and len(best["layer_weights"]) == 4
    results = (recipe / "exp" / "RESULTS.md").read_text()
    assert "speechclip_encoder_local" in results
    assert "--lr '1e-3 1e-2' --nj 2" in results  # a command that can be pasted
    assert best["against"] == "speechclip_encoder_local_tiny" and "### SUPERB" in results
    assert "training" not in _run(*words, cwd=recipe).stdout  # all is done
    run = recipe / "exp/ks/speechclip_local_tiny/lr_0.001"
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()  # as if it had been interrupted while testing
    (run / "train" / "step_21").mkdir()  # and while saving
    again = _run(*words, "--stop_stage", "1", cwd=recipe)
    assert again.returncode == 0 and "Loading checkpoints from" in (run / "log.txt").read_text()
    after = json.loads((run / "result.json").read_text())
    assert after.pop("command") == f"{before.pop('command')} --stop_stage 1" and after == before


@needs_s3prl
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", [name for name in TASKS if name != "ks"])
def test_every_task_runs_on_generated_data(checkpoint: str, tmp_path: Path, name: str) -> None:
    if name == "qbe" and find_spec("dtw") is None:
        pytest.skip("dtw-python is not installed")
    recipe = _copy(tmp_path / "repository")
    words = ["--folds", "0 3"] if name == "er" else []
    ended = _run("--task", name, "--pseudo", "true", "--checkpoint", checkpoint, "--baseline=", *words, cwd=recipe)
    assert ended.returncode == 0, ended.stderr
    pattern = "qbe/*/state_3/eval/benchmark.stdlist.xml" if name == "qbe" else f"{name}/*/best.json"
    assert len(list((recipe / "exp").glob(pattern))) == 1
    if name == "qbe":
        _check_detections(recipe / "exp" / "qbe" / "speechclip_local_tiny", checkpoint, recipe)


def _check_detections(folder: Path, checkpoint: str, recipe: Path) -> None:
    """Check that each query has a score in each document, that nothing is repeated, and that settings are compared."""
    from lxml import etree

    for split in ("dev", "eval"):
        root = etree.parse(str(folder / "state_0" / split / "benchmark.stdlist.xml")).getroot()
        scores = [[float(term.get("score")) for term in query] for query in root]
        assert [len(row) for row in scores] == [3, 3] and all(len(set(row)) == 3 for row in scores)
    words = ["--task", "qbe", "--pseudo", "true", "--checkpoint", checkpoint]
    again = _run(*words, cwd=recipe)
    assert again.returncode == 0 and "written" not in again.stdout and "RESULTS.md gets no row" in again.stdout
    refused = _run(*words, "--", "--downstream_expert.silence_frame", "3", cwd=recipe)
    assert refused.returncode == 1 and "has other settings. Use --force true" in refused.stderr


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
def test_training_ends_with_its_recipe(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text(_ORPHAN.format(local=str(RECIPE / "local")))
    environment = {**os.environ, "PYTHONPATH": str(RECIPE.parents[1])}
    recipe = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert recipe.stdout is not None
    training = int(recipe.stdout.readline())
    os.kill(training, 0)  # it runs
    recipe.kill()
    recipe.wait(timeout=60)
    deadline = time.monotonic() + 60
    while _alive(training) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(training)


def _alive(process: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
