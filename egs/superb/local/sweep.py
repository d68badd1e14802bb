"""One training of s3prl for each learning rate, resumed where it was cut, and the rate that is best on validation."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tasks import Task

from speechclip.errors import UserError

RESULT = "result.json"


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
    """One training: a task on an upstream at a learning rate, in a folder of its own."""

    task: Task
    upstream: Upstream
    folder: Path
    config: dict[str, Any]

    def result(self) -> dict[str, Any] | None:
        """What a finished run left, if its settings are these."""
        file = self.folder / RESULT
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        return found if found["settings"] == self.settings() else None

    def settings(self) -> dict[str, Any]:
        """What the result depends on."""
        local = ("num_workers", "device", "target_dir", "cache_dir")
        config = {key: value for key, value in self.config.items() if key not in local}
        return {"config": config, "weights": self.upstream.fingerprint()}

    def start(self) -> None:
        """Train (from the last checkpoint, if there is one) and test; UserError with the log's last line otherwise."""
        from speechclip.checkpoint import commit

        origin = {"commit": commit(), "command": os.environ.get("SPEECHCLIP_RECIPE_COMMAND", "")}
        settings = self.folder / "settings.json"
        if settings.is_file() and json.loads(settings.read_text()) != self.settings():
            raise UserError(f"{self.folder}: begun with other settings; --force true starts it over, --tag keeps it")
        self.folder.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(self.settings()))
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.config, sort_keys=False))
        run_s3prl(["s3prl-main", self.task.problem, "--config", str(config)], self.folder / "log.txt")
        (self.folder / RESULT).write_text(json.dumps({**self._collect(), **origin}, indent=2) + "\n")

    def _collect(self) -> dict[str, Any]:
        written = "result.yaml" if self.task.valid_metric else "best_result.yaml"
        files = sorted((self.folder / "evaluate").rglob(written))
        if not files:
            raise UserError(f"{self.folder}/evaluate: no result; see {self.folder}/log.txt")
        test = yaml.safe_load(files[0].read_text())
        best = self.folder / "train" / "valid_best"
        valid = yaml.safe_load((best / "training_stats.yaml").read_text()) if best.is_dir() else {}
        last = {"global_step": self.config["train"]["total_steps"], **valid}
        model = best if best.is_dir() else max((self.folder / "train").glob("step_*"), key=lambda p: int(p.name[5:]))
        return {
            "settings": self.settings(), "test": test, "valid": valid.get("valid_best_metrics", {}),
            "step": last["global_step"], "lr": self.config["build_optimizer"]["conf"]["lr"],
            "layer_weights": layer_weights(model / "model" / "state_dict.pt"), "model": str(model),
        }  # fmt: skip


def layer_weights(state_dict: Path) -> list[float]:
    """softmax of the featurizer's weights: how much of each hidden state the task takes."""
    import torch

    weights = torch.load(state_dict, map_location="cpu", weights_only=True)["featurizer.weights"]
    return [round(value, 6) for value in weights.softmax(dim=0).tolist()]


def run_s3prl(words: list[str], log: Path) -> None:
    """Run a command of ``python -m speechclip.upstream`` in a process of its own; ``log`` gets its output.

    The processes are forked from one that has imported s3prl already. UserError with the line that tells why it failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["speechclip.upstream.preload"])
    process = context.Process(target=_work, args=(words, str(log)))
    process.start()
    process.join()
    if process.exitcode:
        told = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        reason = told[-1].removeprefix("error: ") if told else "no output"
        raise UserError(f"{reason} (status {process.exitcode}; {log} has all)")


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
    task = runs[0].task
    by = task.valid_metric
    ranked = sorted(results, key=lambda r: float(r["valid"][by]) if by else score(task, r["test"]))
    return ranked[-1 if task.higher_better else 0]


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
