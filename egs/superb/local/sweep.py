"""Train one s3prl model per learning rate, resume interrupted runs, and choose the best rate on validation."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scores import average_folds, rank, score
from tasks import Task, is_filled

from speechclip.common.errors import UserError, first_line
from speechclip.common.files import LOCK, file_sha256

RESULT, LOG = "result.json", "log.txt"
SCORED = "dscore_der"  # DER of SD's own scorer, in percent; s3prl computes DER by frames


@dataclass(frozen=True)
class Upstream:
    """The upstream of a task.

    Attributes:
        name: the name in s3prl's hub.
        checkpoint: path or address; empty if the name does not need one.
        encoder_only: omit the head's layer of a SpeechCLIP whose name includes its checkpoint.
    """

    name: str
    checkpoint: str
    encoder_only: bool = False

    @property
    def label(self) -> str:
        """The name in folders and tables."""
        parts = [part for part in Path(self.checkpoint).parts if part not in ("best", "last", "exp", "..", "/")]
        given = re.sub(r"\.(ckpt|pt)$", "", parts[-1]) if parts else ""
        return self.name + (f"_{given}" if given else "") + ("_encoder" if self.encoder_only else "")

    def settings(self) -> dict[str, Any]:
        """Return the arguments of s3prl's ``build_upstream``."""
        extra = {"extra_conf": {"head_layer": False}} if self.encoder_only else {}
        return {"name": self.name, **({"path_or_url": self.checkpoint} if self.checkpoint else {}), **extra}

    def fingerprint(self) -> str:
        """Return a hash of the checkpoint's weights; empty for a name that includes its checkpoint."""
        path = Path(self.checkpoint)
        file = path / "model.safetensors" if path.is_dir() else path
        if not self.checkpoint or not file.is_file():
            return ""
        return file_sha256(file)[:16]


def merge(base: dict[str, Any], layer: dict[str, Any], source: str, at: str = "") -> dict[str, Any]:
    """Merge a configuration layer into ``base``.

    Args:
        base: the settings.
        layer: the values that replace them.
        source: the layer's file, for errors.
        at: prefix of the keys, for errors.

    Raises:
        UserError: a key that ``base`` does not have.
    """
    result = dict(base)
    for key, value in layer.items():
        if key not in base and at not in ("prepare_data.", "build_upstream.", "build_optimizer.conf."):
            raise UserError(f"{source}: {at}{key}: no such setting (known here: {', '.join(base)})")
        inside = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merge(base[key], value, source, f"{at}{key}.") if inside else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration layer.

    Raises:
        UserError: the file cannot be read, or does not hold settings.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no settings. A YAML mapping is needed.")
    return found


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Parse ``--train.total_steps 100`` or ``--train.total_steps=100`` into nested settings.

    Raises:
        UserError: a word that is not an override.
    """
    settings: dict[str, Any] = {}
    queue = list(words)
    while queue:
        key, equals, value = queue.pop(0).partition("=")
        if not key.startswith("--") or (not equals and not queue):
            raise UserError(f"{key}: an override is written --name.of.setting VALUE")
        inner = settings
        *outer, last = key[2:].split(".")
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = _value(value if equals else queue.pop(0))
    return settings


def _value(text: str) -> Any:
    """Parse a YAML value. 1e-3 is a number, too; YAML requires 1.0e-3."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


@dataclass(frozen=True)
class Run:
    """One training run: a task on an upstream with one learning rate, in its own folder.

    Attributes:
        task: the task.
        upstream: the upstream.
        folder: folder of the run.
        config: s3prl's configuration.
        corpus: folder of the corpus, for errors.
        fold: number of the test fold, from 0.
    """

    task: Task
    upstream: Upstream
    folder: Path
    config: dict[str, Any]
    corpus: Path = Path()
    fold: int = 0

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, or None if its settings differ or a score is missing."""
        file = self.folder / RESULT
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        stop = self.config.get("stop")
        wanted = bool(self.task.scorer) and (not isinstance(stop, int) or stop > 2)
        return found if found["settings"] == self.settings() and (SCORED in found["test"] or not wanted) else None

    def settings(self) -> dict[str, Any]:
        """Return the settings that change the result. ``stop`` does not: a trained model can be scored later."""
        local = ("num_workers", "device", "target_dir", "cache_dir", "stop")
        config = {key: value for key, value in self.config.items() if key not in local}
        return {"config": config, "weights": self.upstream.fingerprint()}

    def start(self, *, over: bool = False) -> None:
        """Train (from the last checkpoint, if it exists) and test.

        Args:
            over: start over. The earlier run stays in ``lr_<rate>.old`` until the new one has a result. It comes back
                if the new one fails before its first checkpoint.

        Raises:
            UserError: training failed (the error has the log's last line), or another process uses the folder.
        """
        from speechclip.common.files import only_one, previous

        old = previous(self.folder)
        with only_one(self.folder):
            if over:
                if not old.is_dir() or (self.folder / RESULT).is_file():
                    shutil.rmtree(old, ignore_errors=True)
                    old.mkdir()
                    self._move(self.folder, old)
                self._remove_files()  # of a run that had no result, if an earlier one has
            try:
                self._work()
            except UserError:
                if over and not self._steps():
                    self._remove_files()
                    self._move(old, self.folder)
                    old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)

    def _move(self, source: Path, target: Path) -> None:
        """Move the files of a run, except those of the present process."""
        for path in source.iterdir():
            if path.name not in (LOG, LOCK):
                path.rename(target / path.name)

    def _remove_files(self) -> None:
        """Remove the files of the run, except those of the present process."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (LOG, LOCK):
                path.unlink()

    def _work(self) -> None:
        from speechclip.common.provenance import commit

        origin = {"commit": commit(), "command": os.environ.get("SPEECHCLIP_RECIPE_COMMAND", "")}
        settings = self.folder / "settings.json"
        if settings.is_file() and json.loads(settings.read_text()) != self.settings():
            raise UserError(f"{self.folder}: has other settings. Use --force true to start over, or --tag to keep it.")
        settings.write_text(json.dumps(self.settings()))
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.config, sort_keys=False))
        self._remove_cut_checkpoints()
        words = ["s3prl-main", self.task.problem, "--config", str(config)]
        try:
            run_s3prl(words, self.folder / LOG, f"{self.task.name} on {self.corpus}")
        except UserError:
            if not self._steps():  # nothing to resume from, so other settings may start here
                self._remove_files()
            raise
        (self.folder / RESULT).write_text(json.dumps({**self._collect(), **origin}, indent=2) + "\n")

    def _steps(self) -> list[Path]:
        """Return the checkpoints that s3prl resumes from, or tests (ASV), in the order of their steps."""
        return sorted((self.folder / "train").glob("step_*"), key=lambda path: int(path.name[5:]))

    def _remove_cut_checkpoints(self) -> None:
        """Remove incomplete checkpoints. s3prl would resume from the last one, complete or not.

        s3prl overwrites ``valid_best``. If it was interrupted there, the old and the new one are lost. Then training
        resumes from the last step that is followed by a validation.
        """
        for step in self._steps():
            if not _is_whole(step):
                shutil.rmtree(step)
        best = self.folder / "train" / "valid_best"
        if not self.task.valid_metric or _is_whole(best):
            return
        shutil.rmtree(best, ignore_errors=True)
        every, total = (int(self.config["train"][key]) for key in ("eval_step", "total_steps"))
        for step in self._steps():
            if int(step.name[5:]) // every == total // every:
                shutil.rmtree(step)
                continue
            stats = step / "training_stats.yaml"
            stats.write_text(yaml.safe_dump({**yaml.safe_load(stats.read_text()), "valid_best_metrics": {}}))

    def _collect(self) -> dict[str, Any]:
        train, valid = self.folder / "train", {}
        if self.task.valid_metric:
            model = train / "valid_best"
            tested = sorted((self.folder / "evaluate").rglob("result.yaml"))
            valid = yaml.safe_load((model / "training_stats.yaml").read_text()) if tested else {}
        else:  # s3prl tests every step and reports the best one
            names = [f"*/{step.name}/result.yaml" for step in self._steps()]
            files = [file for name in names for file in (self.folder / "evaluate").glob(name)]
            tested = sorted(files, key=lambda file: score(self.task, yaml.safe_load(file.read_text())))
            model = train / tested[0].parent.name if tested else train
            valid = {"global_step": int(model.name[5:])} if tested else {}
        if not tested:
            raise UserError(f"{self.folder}/evaluate: holds no result. See {self.folder}/{LOG}.")
        test = yaml.safe_load(tested[0].read_text())
        scored = tested[0].with_name(self.task.scorer or "none")
        if scored.is_file():
            test |= {f"{scored.stem}_{key}": value for key, value in yaml.safe_load(scored.read_text()).items()}
        return {
            "settings": self.settings(), "test": test, "valid": valid.get("valid_best_metrics", {}),
            "step": valid["global_step"], "lr": self.config["build_optimizer"]["conf"]["lr"],
            "layer_weights": layer_weights(model / "model" / "state_dict.pt"), "model": str(model),
        }  # fmt: skip


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete, also if it replaced another. s3prl writes ``config.yaml`` last."""
    files = [checkpoint / name for name in ("model/state_dict.pt", "task/state.pt", "optimizer.pt",
                                            "training_stats.yaml", "config.yaml")]  # fmt: skip
    if not all(map(is_filled, files)):
        return False
    return files[-1].stat().st_mtime_ns >= files[0].stat().st_mtime_ns


def layer_weights(state_dict: Path) -> list[float]:
    """Return the softmax of the featurizer's weights: the share of each hidden state."""
    import torch

    weights = torch.load(state_dict, map_location="cpu", weights_only=True)["featurizer.weights"]
    return [round(value, 6) for value in weights.softmax(dim=0).tolist()]


def run_s3prl(words: list[str], log: Path, what: str) -> None:
    """Run a command of ``python -m speechclip.upstream`` in a new process.

    The process is forked from one that has already imported s3prl.

    Args:
        words: the command and its arguments.
        log: file that gets the output.
        what: the task and its corpus, for errors.

    Raises:
        UserError: the command failed. The error gives the reason.
    """
    before = log.stat().st_size if log.is_file() else 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["speechclip.upstream.preload"])
    process = context.Process(target=_work, args=(words, str(log)))
    process.start()
    process.join()
    if process.exitcode:
        output = log.read_bytes()[before:].decode(errors="replace") if log.is_file() else ""
        why = reason(output) if process.exitcode > 0 else f"killed by {signal.Signals(-process.exitcode).name}"
        raise UserError(f"{what}: {why} (status {process.exitcode}; the full output is in {log})")


def reason(output: str) -> str:
    """Return the reason of a failed command: the last line of its output, and the place in s3prl of an exception."""
    lines = [line for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    places = re.findall(r'File ".*/(s3prl/[^"]+)", line (\d+), in .*\n\s*(.*)', output)
    if last.startswith("error: ") or not places:
        return last.removeprefix("error: ")
    # In the output of a process pool, the failed assertion is above the frames of the waiting processes.
    file, line, code = next((place for place in reversed(places) if place[2].startswith("assert")), places[-1])
    return f"{last} in {file}:{line}: {code}"


def _work(words: list[str], log: str) -> None:
    from speechclip.upstream.__main__ import main

    threading.Thread(target=_end_with_parent, daemon=True).start()
    handle = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    main(words)


def _end_with_parent() -> None:
    """End this process when the recipe that started it ends. The fork server lives as long as this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def sweep(runs: list[Run], jobs: int, force: bool) -> dict[str, Any]:
    """Run the trainings that are not finished, and return the result of the best learning rate.

    Validation decides. A task without a validation set (ASV) is decided on its trials, as in s3prl. With folds, their
    mean decides, so all folds have the same rate.

    Args:
        runs: one run per learning rate, and per fold.
        jobs: number of runs at the same time.
        force: start over.
    """

    def do(run: Run) -> dict[str, Any]:
        if force or run.result() is None:
            print(f"{run.folder}: training", flush=True)
            run.start(over=force)
        result = run.result()
        assert result is not None
        print(f"{run.folder}: {run.task.metric} {score(run.task, result['test']):.4f}", flush=True)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        finished = list(pool.map(do, runs))
    by_rate: dict[float, dict[int, dict[str, Any]]] = {}
    for run, result in zip(runs, finished, strict=True):
        by_rate.setdefault(result["lr"], {})[run.fold] = result
    results = [average_folds(runs[0].task, folds) for folds in by_rate.values()]
    best = min(results, key=lambda result: rank(runs[0].task, result))
    rates = sorted(result["lr"] for result in results)
    equal = [result for result in results if rank(runs[0].task, result)[0] == rank(runs[0].task, best)[0]]
    if len(rates) > 1 and len(equal) == 1 and best["lr"] in (rates[0], rates[-1]):
        side, other = ("lowest", "lower") if best["lr"] == rates[0] else ("highest", "higher")
        print(f"{runs[0].folder.parent}: the best rate {best['lr']:g} is the {side} of --lr. Try a {other} one.",
              flush=True)  # fmt: skip
    return best
