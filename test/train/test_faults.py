"""Faults during training: SIGTERM, a flipped byte, a full disk, a second run in the same folder, another clock."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import settings, trainer, training_data
from test_distributed import start_two

import speechclip.common.files
from speechclip.checkpoint.folder import SETTINGS, WEIGHTS, load_model, read_checkpoint, read_weights
from speechclip.common.constants import EXIT_RESUMABLE as STOPPED
from speechclip.common.errors import UserError
from speechclip.common.files import LOCK, SUMS, damaged_file, only_one
from speechclip.common.shutdown import GracefulShutdown
from speechclip.config import save
from speechclip.train.logger import TrainLogger
from speechclip.train.state import COUNTERS, TENSORS
from speechclip.train.trainer import Trainer

CHANGES: dict[str, Any] = {"optim__ema_decay": 0.9, "data__time_masks": 1}  # 12 steps, an evaluation every 4


@pytest.fixture(scope="module")
def corpus(corpus: Path) -> Path:
    """The corpus with an undisturbed run in ``whole``."""
    trainer(settings(**CHANGES), training_data(corpus), corpus / "whole").run()
    return corpus


def _again(corpus: Path, folder: Path) -> Trainer:
    return trainer(settings(**CHANGES), training_data(corpus), folder)


def _ends_as_undisturbed(corpus: Path, folder: Path) -> None:
    for name in (f"last/{WEIGHTS}", f"best/{WEIGHTS}", f"last/{TENSORS}"):
        assert (corpus / "whole" / name).read_bytes() == (folder / name).read_bytes(), name


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    plain = TrainLogger.step

    def disturbed(self: TrainLogger, number: int) -> None:
        plain(self, number)
        if number == step:
            act()

    monkeypatch.setattr(TrainLogger, "step", disturbed)


def _flip(path: Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("step", [3, 4, 7])
def test_sigterm_saves_the_step_and_the_next_run_resumes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    caplog.set_level(logging.INFO, "speechclip")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        _stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run = _again(corpus, tmp_path)
        progress = run.run()
    assert (run.stopped, progress.step, progress.finished) == (True, step, False)
    assert f"stopped by SIGTERM after step {step}, which is saved" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before
    assert json.loads((tmp_path / "last" / COUNTERS).read_text())["step"] == step
    rest = _again(corpus, tmp_path)
    assert rest.progress.step == step
    rest.run()
    assert not rest.stopped
    _ends_as_undisturbed(corpus, tmp_path)


def test_sigterm_is_ignored_outside_the_main_thread() -> None:
    found = []

    def look() -> None:
        with GracefulShutdown() as requested:
            found.append(requested())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [False]


def _command(corpus: Path, out: Path, **changes: Any) -> list[str]:
    config = corpus / f"{out.name}.yaml"
    save(settings(train__log_interval=1, **changes), config)
    words = ["--config", config, "--data_root", corpus / "data", "--dump_root", corpus / "dump", "--out", out]
    return [sys.executable, "-m", "speechclip.bin.train", *map(str, words)]


def _wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline and process.poll() is None, f"{path} did not appear"
        time.sleep(0.02)


def test_script_exits_with_75_and_a_second_one_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = _command(corpus, out, optim__max_steps=1_000_000, train__eval_interval=1_000_000, data__workers=1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    _wait_for(out / "metrics.jsonl", process)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert (
        second.stderr
        == f"error: {out}: another run is at work in it (process {process.pid}). Wait for it, or stop it.\n"
    )
    os.killpg(process.pid, signal.SIGTERM)  # as Slurm does: the loader's workers get the signal too
    said, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED == 75
    step = json.loads((out / "last" / COUNTERS).read_text())["step"]
    assert step > 0 and f"stopped by SIGTERM after step {step}, which is saved" in said


def test_sigterm_to_one_of_two_processes_stops_both(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "pair"
    command = _command(corpus, out, optim__max_steps=1_000_000, train__eval_interval=1_000_000)
    started = start_two(command, tmp_path)
    try:
        _wait_for(out / "metrics.jsonl", started[0])
        started[1].terminate()
        assert [process.wait(timeout=90) for process in started] == [STOPPED, STOPPED], (
            tmp_path / "rank1.log"
        ).read_text()[-2000:]
    finally:
        for process in started:
            process.kill()
    assert "stopped by SIGTERM" in (tmp_path / "rank0.log").read_text()
    assert (out / "last" / TENSORS).is_file()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    with only_one(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
        with pytest.raises(UserError, match="another run is at work in it"), only_one(tmp_path):
            pass
    with only_one(tmp_path):
        pass


@pytest.fixture
def cut(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed at step 11, with saves of steps 4 and 8."""

    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        _stop_at(patch, 11, die)
        with pytest.raises(KeyboardInterrupt):
            _again(corpus, tmp_path / "cut").run()
    return tmp_path / "cut"


@pytest.mark.parametrize("name", [WEIGHTS, TENSORS, COUNTERS, SETTINGS, SUMS])
def test_a_flipped_byte_makes_training_resume_from_last_old(
    corpus: Path, cut: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    _flip(cut / "last" / name, 64 if name == SUMS else -3)  # the gap after the first digest
    assert damaged_file(cut / "last", all_files=True) == name
    rest = _again(corpus, cut)
    assert rest.progress.step == 4
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{cut}/last/{name}: " in message and f"{cut}/last.old" in message
    assert not damaged_file(cut / "last", all_files=True)  # the intact checkpoint has replaced it
    rest.run()
    _ends_as_undisturbed(corpus, cut)


def test_two_damaged_checkpoints_are_an_error(corpus: Path, cut: Path) -> None:
    _flip(cut / "last" / TENSORS)
    _flip(cut / "last.old" / TENSORS)
    with pytest.raises(UserError, match=f"{cut}/last/{TENSORS}: .*its checksum differs"):
        _again(corpus, cut)


def test_a_damaged_best_is_neither_scored_nor_ignored(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(corpus / "whole", tmp_path / "run")
    best = tmp_path / "run" / "best"
    shutil.copytree(best, best.with_name("best.old"), dirs_exist_ok=True)
    _flip(best / WEIGHTS)
    with pytest.raises(UserError, match=rf"its checksum differs\. The previous checkpoint is {best}\.old\.$"):
        read_checkpoint(best, strict=True)
    loaded = load_model(best, with_speech_encoder=False).trained_state()
    whole = read_weights(corpus / "whole" / "best" / WEIGHTS)
    assert all(torch.equal(loaded[name], value) for name, value in whole.items())
    assert f"The previous checkpoint, {best}.old, is used." in caplog.text
    with pytest.raises(UserError, match="run/best: missing or damaged, and training is past its step"):
        _again(corpus, tmp_path / "run")


@pytest.mark.parametrize(("call", "step"), [(1, 0), (2, 0), (3, 4)])
def test_a_full_disk_costs_only_the_save_it_hits(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, step: int
) -> None:
    """The first three saves: best and last of step 4, one of them of step 8."""
    plain, calls = speechclip.common.files._write_sums, []

    def full(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == call:
            (folder / "half").write_bytes(b"x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(folder)

    with monkeypatch.context() as patch:
        patch.setattr(speechclip.common.files, "_write_sums", full)
        with pytest.raises(UserError, match=f"^{tmp_path}/(best|last): disk full while writing"):
            _again(corpus, tmp_path).run()
    assert not list(tmp_path.glob("*.part"))
    rest = _again(corpus, tmp_path)
    assert rest.progress.step == step
    rest.run()
    _ends_as_undisturbed(corpus, tmp_path)


def test_changes_of_the_system_time_do_not_matter(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, jumps = time.time, itertools.cycle([0, 1e9, -1e9, 3.6e3])  # other threads ask for the time, too

    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: plain() + next(jumps))
        _stop_at(patch, 7, die)
        with pytest.raises(KeyboardInterrupt):
            _again(corpus, tmp_path).run()
    for number, path in enumerate(sorted(tmp_path.rglob("*"))):  # the years 1973 and 2033
        os.utime(path, (1e8, 1e8) if number % 2 else (2e9, 2e9))
    rest = _again(corpus, tmp_path)
    assert rest.progress.step == 4
    assert rest.run().seconds < 600
    _ends_as_undisturbed(corpus, tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_locale_time_zone_and_hash_seed_do_not_matter(corpus: Path, tmp_path: Path) -> None:
    weights = []
    for number, changes in enumerate(
        (
            {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"},
            {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu", "HOME": str(tmp_path), "COLUMNS": "7"},
        )
    ):
        out = tmp_path / str(number)
        subprocess.run(
            _command(corpus, out, optim__max_steps=3), env={**os.environ, **changes}, check=True, capture_output=True
        )
        weights.append((out / "last" / WEIGHTS).read_bytes())
    assert weights[0] == weights[1]
