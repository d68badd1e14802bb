"""Trained weights survive every start: the same run resumes, and another run keeps the earlier weights."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import settings, stored_split, trainer, training_data, with_paths
from safetensors import safe_open

import speechclip.common.files
import speechclip.train.trainer
from speechclip.checkpoint.folder import WEIGHTS, load_model
from speechclip.common.errors import UserError
from speechclip.config import Config, load
from speechclip.train.logger import TrainLogger
from speechclip.train.replaced import REPLACED, keep, restore_interrupted, set_aside
from speechclip.train.state import probe_sums
from speechclip.train.trainer import STARTING, Trainer, TrainingData

FILES = (f"best/{WEIGHTS}", f"last/{WEIGHTS}")


def _settings(**changes: Any) -> Config:
    return settings(**{"train__tensorboard_utterances": 0, **changes})  # the samples take most of the time


class Killed(BaseException):
    """Stands for a kill of the process."""


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps with saves at 4, 8 and 12. Tests work on copies."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    trainer(_settings(), training_data(corpus), folder).run()
    (folder / "scores").mkdir()
    (folder / "scores" / "retrieval.json").write_text("{}")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """A copy of the finished run."""
    caplog.set_level(logging.INFO, "speechclip")
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def _cut(corpus: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int = 6, **changes: Any) -> None:
    """Kill a run in the given step."""
    plain = Trainer._update

    def update(self: Trainer, batch: Any) -> Any:
        if self.progress.step == step:
            raise Killed
        return plain(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", update)
        with pytest.raises(Killed):
            trainer(_settings(**changes), training_data(corpus), folder).run()


WITHOUT_EFFECT: list[dict[str, Any]] = [
    {}, {"eval__neighbours": 3}, {"eval__sweep": [1, 2]}, {"data__workers": 1}, {"data__eval_batch_size": 3},
    {"train__log_interval": 1}, {"train__tensorboard_utterances": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", WITHOUT_EFFECT, ids=str)
def test_settings_without_effect_keep_a_finished_run(
    corpus: Path, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    before = _weights(run)
    monkeypatch.setattr(Trainer, "_update", lambda self, batch: pytest.fail("a finished run trains"))
    assert trainer(_settings(**changes), training_data(corpus), run).run().finished
    assert caplog.messages == [f"{run}: already trained: 12 steps, best at step {_best_step(run)}"]
    assert _weights(run) == before and len(before) == 2
    assert not (run / REPLACED).exists()


def _best_step(run: Path) -> int:
    step = json.loads((run / "best" / "provenance.json").read_text())["step"]
    assert isinstance(step, int)
    return step


@pytest.mark.parametrize("changes", WITHOUT_EFFECT[1:], ids=str)
def test_settings_without_effect_resume_a_cut_run(
    corpus: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    _cut(corpus, tmp_path, monkeypatch)
    resumed = trainer(_settings(**changes), training_data(corpus), tmp_path)
    assert resumed.progress.step == 4
    resumed.run()
    assert _weights(tmp_path)[FILES[1]] == _weights(finished)[FILES[1]]


def test_scoring_settings_reach_the_finished_checkpoint(corpus: Path, run: Path) -> None:
    before = _weights(run)
    trainer(_settings(eval__neighbours=3, train__log_interval=1), training_data(corpus), run).run()
    stored = load([run / "best" / "config.yaml"])
    assert (stored.eval.neighbours, stored.train.log_interval) == (3, 3)  # logging stays as it was
    assert _weights(run) == before
    load_model(run / "best", with_speech_encoder=False)


def test_a_moved_encoder_with_the_same_weights_is_the_same(corpus: Path, run: Path, tmp_path: Path) -> None:
    parts = {"encoders": {"clip": {"weights": "1"}, "speech_encoder": {"weights": "2"}}}
    config = with_paths(_settings(optim__max_steps=2), hubert="a/hubert", clip="a/clip")
    moved = with_paths(config, hubert="b/hubert", clip="b/clip")
    made = trainer(config, training_data(corpus), tmp_path / "moved")
    made.origin.update(parts)
    made.run()
    again = trainer(moved, training_data(corpus), tmp_path / "moved", origin=parts)
    assert again.progress.finished
    assert load([tmp_path / "moved/best/config.yaml"]).model.clip.path == "b/clip"
    other = {"encoders": {**parts["encoders"], "clip": {"weights": "3"}}}
    assert not trainer(moved, training_data(corpus), tmp_path / "moved", origin=other).progress.finished


def _other_images(data: TrainingData) -> TrainingData:
    split = dataclasses.replace(data.train, images=np.roll(data.train.images, 1, axis=0))
    return dataclasses.replace(data, train=split)


def test_embeddings_that_differ_by_rounding_are_the_same(corpus: Path, run: Path) -> None:
    before, data = _weights(run), training_data(corpus)
    dev = dataclasses.replace(data.dev, images=data.dev.images * np.float32(1 + 1e-7))
    assert not np.array_equal(dev.images, data.dev.images)
    started = trainer(_settings(), dataclasses.replace(data, dev=dev), run)
    assert started.progress.finished and _weights(run) == before


def test_sums_of_embeddings_show_every_change_but_rounding() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40_000, 8), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sums = probe_sums(rows)
    expected = np.zeros(4)
    for at, row in enumerate(rows[:3].astype(float), start=1):
        for probe in range(1, 5):
            weights = np.cos(np.arange(1, 9) * probe * np.sqrt(2))
            expected[probe - 1] += np.cos(at * probe * np.sqrt(3)) * row @ weights
    np.testing.assert_allclose(probe_sums(rows[:3]), expected, atol=1e-6)
    rounded = rows * (1 + rng.uniform(-1e-7, 1e-7, rows.shape)).astype(np.float32)
    np.testing.assert_allclose(probe_sums(rounded), sums, atol=1e-4)
    swapped, other = rows.copy(), rows.copy()
    swapped[[7, 30_000]], other[20_000] = swapped[[30_000, 7]], rows[5]
    for changed in (swapped, other, rows[:-1], -rows):
        assert np.abs(np.array(probe_sums(changed)) - sums).max() > 0.05


CHANGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"optim__lr": 2e-3}, {}, "optim.lr"),
    ({"optim__lr": 2e-3, "model__head__dropout": 0.2}, {}, "model.head.dropout, optim.lr"),
    ({"optim__max_steps": 14}, {}, "optim.max_steps"),
    ({"train__eval_interval": 5}, {}, "train.eval_interval"),
    ({}, {"seed": 5}, "seed"),
    ({}, {"data": _other_images}, "embeddings"),
]


@pytest.mark.parametrize(
    ("changes", "others", "names"), CHANGED, ids=lambda value: getattr(value, "__name__", str(value)[:40])
)
def test_a_changed_input_starts_over_and_keeps_the_weights(
    corpus: Path, run: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], others: dict[str, Any],
    names: str,
) -> None:  # fmt: skip
    before = _weights(run)
    change = others.get("data", lambda data: data)
    started = trainer(_settings(**changes), change(training_data(corpus)), run, seed=others.get("seed", 0))
    told = (
        f"{run}: starting over: other values of: {names}. The earlier weights move to replaced/ after the first save."
    )
    assert caplog.messages == [told]
    assert started.progress.step == 0
    assert _weights(run) == before  # until the first save
    assert started.run().finished
    assert f"{run}: the earlier weights are in {run / REPLACED / '1'}" in caplog.messages
    assert _weights(run / REPLACED / "1") == before
    assert {"best", "last", "metrics.jsonl", "scores", "tensorboard"} <= {
        path.name for path in (run / REPLACED / "1").iterdir()
    }
    assert _weights(run) != before
    assert not (run / "scores").exists() and not (run / STARTING).exists()
    assert list((run / "tensorboard").glob("events*"))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[0] == 3


def test_a_third_run_keeps_both_earlier_ones(corpus: Path, run: Path) -> None:
    first = _weights(run)
    trainer(_settings(optim__lr=2e-3), training_data(corpus), run).run()
    second = _weights(run)
    trainer(_settings(optim__lr=3e-3), training_data(corpus), run).run()
    assert _weights(run / REPLACED / "1") == first
    assert _weights(run / REPLACED / "2") == second


@pytest.mark.parametrize("changes", [{}, {"optim__lr": 2e-3}], ids=str)
def test_force_deletes_the_weights_after_the_first_save(
    corpus: Path, run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    before, config = _weights(run), _settings(**changes)
    started = trainer(config, training_data(corpus), run, force=True)
    assert caplog.messages == [
        f"{run}: starting over: --force is given. The earlier weights are deleted after the first save."
    ]
    assert (started.progress.step, _weights(run)) == (0, before)
    started.run()
    assert not list((run / REPLACED).iterdir())
    assert (_weights(run) == before) == (not changes)


def test_best_without_a_training_state_is_kept(corpus: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = _weights(run)[FILES[0]]
    for name in ("last", "last.old"):
        shutil.rmtree(run / name)
    trainer(_settings(), training_data(corpus), run).run()
    assert "starting over: the training state is missing." in caplog.messages[0]
    assert (run / REPLACED / "1" / FILES[0]).read_bytes() == before


# -- starts that fail ------------------------------------------------------------------------------------------------


def _nan_features(data: TrainingData) -> TrainingData:
    plain = data.train_speech.batch

    def batch(indices: Any, crop: Any = None) -> Any:
        read = plain(indices, crop)
        return read._replace(states=torch.full_like(read.states, torch.nan))

    data.train_speech.batch = batch  # type: ignore[method-assign]
    return data


def _unreadable(data: TrainingData) -> TrainingData:
    def batch(indices: Any, crop: Any = None) -> Any:
        raise UserError("dump/train/feats.1.safetensors: damaged")

    data.train_speech.batch = batch  # type: ignore[method-assign]
    return data


def _without_texts(data: TrainingData) -> TrainingData:
    return dataclasses.replace(data, train=dataclasses.replace(data.train, texts=None))


def _one_image(data: TrainingData) -> TrainingData:
    split = dataclasses.replace(data.train, utterance_image=np.zeros(len(data.train.ids), dtype=int))
    return dataclasses.replace(data, train=split)


FAILING: list[tuple[dict[str, Any], Any, str]] = [
    ({"data__batch_size": 25}, None, "data.batch_size: 25 is more than the 24 training utterances. Use at most 24."),
    ({"optim__lr": 2e-3}, _nan_features, "data/train: the loss is nan at step 1. Features are not finite: "),
    ({"optim__lr": 2e-3}, _unreadable, "dump/train/feats.1.safetensors: damaged"),
    ({"train__supervision": "text"}, _without_texts, "train.supervision: text needs text_embeddings.npz"),
    ({"optim__lr": 2e-3}, _one_image, "data/train: all utterances describe one image"),
]


@pytest.mark.parametrize(
    ("changes", "change", "problem"), FAILING, ids=lambda value: getattr(value, "__name__", str(value)[:40])
)
def test_a_start_that_fails_leaves_a_finished_run_untouched(
    corpus: Path, run: Path, changes: dict[str, Any], change: Any, problem: str
) -> None:
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    data = training_data(corpus)
    with pytest.raises(UserError) as caught:
        trainer(_settings(**changes), change(data) if change else data, run).run()
    assert problem in str(caught.value)
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before
    assert trainer(_settings(), training_data(corpus), run).progress.finished


@pytest.mark.parametrize("batch_size", [0, 1])
def test_a_batch_without_negatives_is_refused(corpus: Path, tmp_path: Path, batch_size: int) -> None:
    with pytest.raises(UserError, match="^data.batch_size: "):
        trainer(_settings(data__batch_size=batch_size), training_data(corpus), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_saves_only_at_the_end_is_a_warning(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(_settings(train__eval_interval=12), training_data(corpus), tmp_path)
    assert not caplog.messages
    trainer(_settings(train__eval_interval=13), training_data(corpus), tmp_path)
    assert caplog.messages == [
        "train.eval_interval: 13 is more than the 12 steps of the run. Only the last step is scored and saved."
    ]


def test_one_dev_image_is_a_warning(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = training_data(corpus)
    stored_split(tmp_path, "dev", images=1, each=2, seed=1)
    stored_split(tmp_path, "train", images=1, each=2, seed=1)
    one = training_data(tmp_path)
    trainer(_settings(), TrainingData(data.train, one.dev, data.train_speech, one.dev_speech), tmp_path / "run")
    assert "data/dev: all utterances describe one image. The best step cannot be chosen by R@10." in caplog.text


@pytest.mark.parametrize("call", [1, 2])
def test_a_full_disk_at_the_first_save_restores_the_run(
    corpus: Path, run: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    before, plain, calls = _weights(run), speechclip.common.files._write_sums, []

    def full(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(folder)

    with monkeypatch.context() as patch:
        patch.setattr(speechclip.common.files, "_write_sums", full)
        with pytest.raises(UserError, match="disk full"):
            trainer(_settings(optim__lr=2e-3), training_data(corpus), run).run()
    assert _weights(run) == before
    assert not list((run / REPLACED).iterdir()) and (run / "scores/retrieval.json").is_file()
    assert trainer(_settings(), training_data(corpus), run).progress.finished


# -- kills -----------------------------------------------------------------------------------------------------------


def _stop_before(patch: pytest.MonkeyPatch, name: str, call: int = 1) -> None:
    """Kill the process before a function of the trainer module is called the ``call``-th time."""
    plain, calls = getattr(speechclip.train.trainer, name), []

    def stop(*words: Any, **named: Any) -> Any:
        calls.append(words)
        if len(calls) == call:
            raise Killed
        return plain(*words, **named)

    patch.setattr(speechclip.train.trainer, name, stop)


@pytest.mark.parametrize(
    ("name", "call", "saved"),
    [("set_aside", 1, 0), ("save_checkpoint", 1, 0), ("save_checkpoint", 2, 0), ("keep", 1, 4)],
)
def test_a_kill_around_the_first_save_loses_nothing(
    corpus: Path, run: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int, saved: int
) -> None:
    before, changed = _weights(run), _settings(optim__lr=2e-3)
    with monkeypatch.context() as patch:
        _stop_before(patch, name, call)
        patch.setattr(speechclip.train.trainer, "restore_interrupted", lambda folder: None)  # a kill repairs nothing
        with pytest.raises(Killed):
            trainer(changed, training_data(corpus), run).run()
    if not saved:  # the earlier command finds its run finished
        copy = Path(shutil.copytree(run, run.with_name("copy")))
        assert trainer(_settings(), training_data(corpus), copy).progress.finished
        assert _weights(copy) == before and (copy / "scores/retrieval.json").is_file()
    again = trainer(changed, training_data(corpus), run)
    assert again.progress.step == saved
    again.run()
    assert _weights(run / REPLACED / "1") == before
    assert sorted(path.name for path in (run / REPLACED).iterdir()) == ["1"]


@pytest.mark.parametrize("moved", range(5))
def test_a_kill_while_files_move_is_undone(run: Path, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    before = {path.relative_to(run): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    plain, calls = Path.rename, []

    def rename(self: Path, target: Any) -> Path:
        if len(calls) == moved:
            raise Killed
        calls.append(self)
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            set_aside(run)
    restore_interrupted(run)
    assert {path.relative_to(run): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before
    assert not list((run / REPLACED).iterdir())


def test_numbers_of_kept_runs_are_not_reused(run: Path) -> None:
    (run / REPLACED / "1").mkdir(parents=True)
    (run / REPLACED / "3").mkdir()
    assert keep(set_aside(run)) == run / REPLACED / "2"
    (run / "last").mkdir()
    assert set_aside(run) == run / REPLACED / "4.part"


def test_sigterm_before_the_first_evaluation_keeps_both(
    corpus: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, plain = _weights(run), TrainLogger.step

    def step(self: TrainLogger, number: int) -> None:
        plain(self, number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLogger, "step", step)
        stopped = trainer(_settings(optim__lr=2e-3), training_data(corpus), run)
        stopped.run()
    assert stopped.stopped and _weights(run / REPLACED / "1") == before
    assert trainer(_settings(optim__lr=2e-3), training_data(corpus), run).progress.step == 2
    with safe_open(run / "last" / WEIGHTS, "pt") as file:
        assert list(file.keys())
