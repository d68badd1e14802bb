"""One training of s3prl for each learning rate, resumed where it was cut, and the rate that is best on validation."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
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
from tasks import Task, is_filled

from speechclip.common.errors import UserError
from speechclip.common.files import LOCK

RESULT, LOG = "result.json", "log.txt"
SCORED = "dscore_der"  # of SD's own scorer, in percent; beside s3prl's DER by frames


@dataclass(frozen=True)
class Upstream:
    """Whose states the task gets: a name of s3prl's hub, and a checkpoint where the name wants one.

    encoder_only: of a SpeechCLIP that brings its own checkpoint, leave the head's layer out.
    """

    name: str
    checkpoint: str
    encoder_only: bool = False

    @property
    def label(self) -> str:
        """For folders and tables."""
        parts = [part for part in Path(self.checkpoint).parts if part not in ("best", "last", "exp", "..", "/")]
        given = re.sub(r"\.(ckpt|pt)$", "", parts[-1]) if parts else ""
        return self.name + (f"_{given}" if given else "") + ("_encoder" if self.encoder_only else "")

    def settings(self) -> dict[str, Any]:
        """What s3prl's ``build_upstream`` wants to know."""
        extra = {"extra_conf": {"head_layer": False}} if self.encoder_only else {}
        return {"name": self.name, **({"path_or_url": self.checkpoint} if self.checkpoint else {}), **extra}

    def fingerprint(self) -> str:
        """Of the checkpoint's weights; empty for a name that brings its own."""
        path = Path(self.checkpoint)
        file = path / "model.safetensors" if path.is_dir() else path
        if not self.checkpoint or not file.is_file():
            return ""
        digest = hashlib.sha256()
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()[:16]


def merge(base: dict[str, Any], layer: dict[str, Any], source: str, at: str = "") -> dict[str, Any]:
    """``base`` with the values of ``layer``; a key that ``base`` does not have is a UserError."""
    result = dict(base)
    for key, value in layer.items():
        if key not in base and at not in ("prepare_data.", "build_upstream.", "build_optimizer.conf."):
            raise UserError(f"{source}: {at}{key}: no such setting (known here: {', '.join(base)})")
        inside = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merge(base[key], value, source, f"{at}{key}.") if inside else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration layer."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: no settings in it")
    return found


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """``--train.total_steps 100`` or with ``=``, nested."""
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
    """A YAML value; 1e-3 is a number too, which YAML wants written 1.0e-3."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


@dataclass(frozen=True)
class Run:
    """One training: a task on an upstream at a learning rate, in a folder of its own. corpus: for what is told."""

    task: Task
    upstream: Upstream
    folder: Path
    config: dict[str, Any]
    corpus: Path = Path()

    def result(self) -> dict[str, Any] | None:
        """What a finished run left, if its settings are these and it was scored as it now should be."""
        file = self.folder / RESULT
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        stop = self.config.get("stop")
        wanted = bool(self.task.scorer) and (not isinstance(stop, int) or stop > 2)
        return found if found["settings"] == self.settings() and (SCORED in found["test"] or not wanted) else None

    def settings(self) -> dict[str, Any]:
        """What the result depends on. Not on how far s3prl goes: what is trained may be scored later."""
        local = ("num_workers", "device", "target_dir", "cache_dir", "stop")
        config = {key: value for key, value in self.config.items() if key not in local}
        return {"config": config, "weights": self.upstream.fingerprint()}

    def start(self) -> None:
        """Train (from the last checkpoint, if there is one) and test.

        Raises:
            UserError: with the log's last line; another process is at work in the folder.
        """
        from speechclip.common.files import only_one

        with only_one(self.folder):
            self._work()

    def _work(self) -> None:
        from speechclip.common.provenance import commit

        origin = {"commit": commit(), "command": os.environ.get("SPEECHCLIP_RECIPE_COMMAND", "")}
        settings = self.folder / "settings.json"
        if settings.is_file() and json.loads(settings.read_text()) != self.settings():
            raise UserError(f"{self.folder}: begun with other settings; --force true starts it over, --tag keeps it")
        settings.write_text(json.dumps(self.settings()))
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.config, sort_keys=False))
        self._remove_cut_checkpoints()
        words = ["s3prl-main", self.task.problem, "--config", str(config)]
        try:
            run_s3prl(words, self.folder / LOG, f"{self.task.name} on {self.corpus}")
        except UserError:
            if not self._steps():  # nothing to go on from: whatever gets mended, other settings may start here
                for path in self.folder.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path.name not in (LOG, LOCK):
                        path.unlink()
            raise
        (self.folder / RESULT).write_text(json.dumps({**self._collect(), **origin}, indent=2) + "\n")

    def _steps(self) -> list[Path]:
        """The checkpoints that s3prl would go on from, or tests (ASV), in the order of their steps."""
        return sorted((self.folder / "train").glob("step_*"), key=lambda path: int(path.name[5:]))

    def _remove_cut_checkpoints(self) -> None:
        """Remove what a kill cut while s3prl wrote it, in place; s3prl takes the last step, whole or not.

        ``valid_best`` is written over the one before. Where it was cut, both are gone: validation begins anew, after
        the last step that still has one to come.
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
        else:  # every step was tested; s3prl takes the best, and so does this, with its weights
            names = [f"*/{step.name}/result.yaml" for step in self._steps()]
            files = [file for name in names for file in (self.folder / "evaluate").glob(name)]
            tested = sorted(files, key=lambda file: score(self.task, yaml.safe_load(file.read_text())))
            model = train / tested[0].parent.name if tested else train
            valid = {"global_step": int(model.name[5:])} if tested else {}
        if not tested:
            raise UserError(f"{self.folder}/evaluate: no result; see {self.folder}/{LOG}")
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
    """Whether a folder holds all of what s3prl saves, ``config.yaml`` last, also where it was written over another."""
    files = [checkpoint / name for name in ("model/state_dict.pt", "task/state.pt", "optimizer.pt",
                                            "training_stats.yaml", "config.yaml")]  # fmt: skip
    if not all(map(is_filled, files)):
        return False
    return files[-1].stat().st_mtime_ns >= files[0].stat().st_mtime_ns


def layer_weights(state_dict: Path) -> list[float]:
    """softmax of the featurizer's weights: how much of each hidden state the task takes."""
    import torch

    weights = torch.load(state_dict, map_location="cpu", weights_only=True)["featurizer.weights"]
    return [round(value, 6) for value in weights.softmax(dim=0).tolist()]


def run_s3prl(words: list[str], log: Path, what: str) -> None:
    """Run a command of ``python -m speechclip.upstream`` in a process of its own; ``log`` gets its output.

    The processes are forked from one that has imported s3prl already. UserError with the line that tells why it failed;
    what: the task and its corpus, for that line.
    """
    before = log.stat().st_size if log.is_file() else 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["speechclip.upstream.preload"])
    process = context.Process(target=_work, args=(words, str(log)))
    process.start()
    process.join()
    if process.exitcode:
        told = log.read_bytes()[before:].decode(errors="replace") if log.is_file() else ""
        why = reason(told) if process.exitcode > 0 else f"killed by {signal.Signals(-process.exitcode).name}"
        raise UserError(f"{what}: {why} (status {process.exitcode}; {log} has all)")


def reason(told: str) -> str:
    """Why a command failed, by what it told: its last line, with the place in s3prl if that is a Python exception."""
    lines = [line for line in told.splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    places = re.findall(r'File ".*/(s3prl/[^"]+)", line (\d+), in .*\n\s*(.*)', told)
    if last.startswith("error: ") or not places:
        return last.removeprefix("error: ")
    # in what a pool hands on, the failed assertion stands above the frames of those who waited for it
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
    """End this process when the recipe that asked for it ends; the fork server between them lives as long as this."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def sweep(runs: list[Run], jobs: int, force: bool) -> dict[str, Any]:
    """Do what is not done yet, ``jobs`` at a time, and return the best run's result.

    Validation decides; a task without a validation set (ASV) is decided on its trials, as s3prl decides among steps.
    """

    def do(run: Run) -> dict[str, Any]:
        if force:
            shutil.rmtree(run.folder, ignore_errors=True)
        if run.result() is None:
            print(f"{run.folder}: training", flush=True)
            run.start()
        result = run.result()
        assert result is not None
        print(f"{run.folder}: {run.task.metric} {score(run.task, result['test']):.4f}", flush=True)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(do, runs))
    best = min(results, key=lambda result: _rank(runs[0].task, result))
    rates = sorted(result["lr"] for result in results)
    if len(rates) > 1 and best["lr"] in (rates[0], rates[-1]):
        side = "lowest" if best["lr"] == rates[0] else "highest"
        print(f"{runs[0].folder.parent}: {best['lr']:g} is the {side} rate of --lr; one beyond it may be better",
              flush=True)  # fmt: skip
    return best


def _rank(task: Task, result: dict[str, Any]) -> tuple[float, float, float]:
    """What decides a sweep, lower first: the metric; among equals the loss on validation, then the rate."""
    value = float(result["valid"][task.valid_metric]) if task.valid_metric else score(task, result["test"])
    loss = float(result["valid"].get("loss", math.inf))
    first, second = (math.inf if math.isnan(x) else x for x in (-value if task.higher_better else value, loss))
    return first, second, result["lr"]


def score(task: Task, test: dict[str, Any]) -> float:
    """The task's metric among what s3prl wrote, whatever the case of its name."""
    found = {key.lower(): value for key, value in _flat(test).items()}
    if task.metric.lower() not in found:
        raise UserError(f"no {task.metric} in the result, only {', '.join(found)}")
    return float(found[task.metric.lower()])


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
