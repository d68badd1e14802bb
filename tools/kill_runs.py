#!/usr/bin/env python3
"""Kills a shrunken run of egs/mini (SIGKILL, every process) at random moments, restarts it, and compares its end.

An undisturbed run in a copy of the recipe says how long each stage takes. In a second copy every stage is killed at
least --each times, at moments drawn from those lengths, --kills times in all; at every restart the locale, the time
zone and Python's hash seed are others, and sometimes all files' times are years off, as after a clock that was set. At
the end weights, trainer states, stored features, embeddings and scores have to be equal to the undisturbed run's, bit
by bit.

Usage: tools/kill_runs.py [--kills 24] [--each 2] [--scenes 60] [--steps 24] [--head "parallel cascaded"] [--seed 0]
       [--folder DIR] (kept; by default a temporary one)
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
STAGES = range(8)
MARK = "SPEECHCLIP_KILL_RUNS"  # in the environment of every process of a run
LINE = re.compile(r"^stage (\d) \(\w+\)(?:: ([^:]*))?: (.*)$")
Unit = tuple[int, str]  # a stage, and the run it works on


class Recipe:
    """A copy of what a recipe needs, and egs/mini in it."""

    def __init__(self, top: Path, words: list[str]) -> None:
        for name in ("egs", "utils", "speechclip"):
            made = ("__pycache__", *(("corpus", "data", "dump", "exp") if name == "egs" else ()))
            shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns(*made))
        self.folder, self.words, self.mark = top / "egs" / "mini", words, f"{os.getpid()}.{top.name}"
        self.says = top / "says.txt"

    def start(self, options: list[str], changes: dict[str, str]) -> subprocess.Popen[bytes]:
        """./run.sh with these options before the shared ones."""
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment = {**kept, "SPEECHCLIP_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **changes, MARK: self.mark}
        with self.says.open("wb") as says:
            return subprocess.Popen(
                ["./run.sh", *options, *self.words], cwd=self.folder, env=environment, stdout=says, stderr=says,
                start_new_session=True,
            )  # fmt: skip

    def stages(self) -> list[tuple[Unit, str]]:
        """The stages that the run has begun, ended or skipped so far, and what it says of each."""
        found = map(LINE.match, self.says.read_text(errors="replace").split("\n")[:-1])
        return [((int(line[1]), line[2] or ""), line[3]) for line in found if line]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End all processes of the run at once, as a power cut would."""
        wanted = f"{MARK}={self.mark}".encode()
        while alive := [number for number in _processes() if wanted in _environment(number)]:
            for number in alive:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)
        process.wait()

    def finish(self, changes: dict[str, str]) -> dict[Unit, float]:
        """Run to the end; seconds of every stage that had to do something."""
        process, lengths, starts, told = self.start([], changes), {}, {}, 0
        while True:
            ended = process.poll() is not None  # asked before the last look
            for unit, said in self.stages()[told:]:
                told, now = told + 1, time.monotonic()
                if said.startswith("done in"):
                    lengths[unit] = now - starts[unit]
                starts.setdefault(unit, now)
            if ended:
                break
            time.sleep(0.05)
        self.check(process)
        return lengths

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """UserError where a run ended by itself and not well."""
        if process.returncode not in (0, -signal.SIGKILL):
            lines = self.says.read_text(errors="replace").strip().split("\n")
            raise UserError(f"{self.folder}: ended with status {process.returncode}: {lines[-1]}")

    def killed_in(self, unit: Unit, delay: float, options: list[str], changes: dict[str, str]) -> Unit | None:
        """Start, kill ``delay`` seconds into a stage; which one it hit, or None where the run did not get to any."""
        process = self.start(options, changes)
        while process.poll() is None and unit not in [begun for begun, _ in self.stages()]:
            time.sleep(0.02)
        if process.poll() is None and unit in self.at_work():  # else it is up to date
            time.sleep(delay)
        hit = self.at_work()[-1:] if process.poll() is None else []
        self.kill(process)
        self.check(process)
        return hit[0] if unit in self.at_work() and hit else None

    def at_work(self) -> list[Unit]:
        """The stages that were begun, without those that are up to date."""
        return [unit for unit, said in self.stages() if not said.startswith(("up to date", "done in"))]


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid())


def _environment(number: int) -> list[bytes]:
    try:
        return Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's
        return []


def other_world(draw: random.Random, folder: Path) -> dict[str, str]:
    """An environment for the next start; and the folder as after a clock that was set, one time in three."""
    if draw.random() < 1 / 3:
        for path in folder.rglob("*"):
            moment = time.time() + draw.uniform(-3, 3) * 3.15e7
            os.utime(path, (moment, moment), follow_symlinks=False)
    return {
        "PYTHONHASHSEED": str(draw.randrange(1 << 32)),
        "TZ": draw.choice(["UTC", "Asia/Kathmandu", "America/St_Johns"]),
        "LC_ALL": draw.choice(["C", "C.UTF-8", "POSIX"]),
    }


def differences(whole: Path, killed: Path) -> tuple[int, list[str]]:
    """How many files were compared, and those that differ."""
    names = sorted(
        str(path.relative_to(whole))
        for pattern in ("data/*/*", "data/*.tsv", "dump/*/*/*.npz", "dump/*/*/feats.scp", "exp/*/*/*.safetensors",
                        "exp/*/*/vocabulary.tsv", "exp/*/scores/*.npz", "exp/*/scores/*.json*")
        for path in whole.glob(pattern)
        if not path.parent.name.startswith((".", "log")) and not path.parent.name.endswith(".old")
    )  # fmt: skip
    return len(names), [name for name in names if not same(whole / name, killed / name)]


def same(first: Path, second: Path) -> bool:
    """Whether two files hold the same; where and when a score was computed is no part of it."""
    if not second.is_file():
        return False
    if first.name == "feats.scp":
        from speechclip.data.features import FeatureStore

        one, other = FeatureStore(first.parent), FeatureStore(second.parent)
        return one.num_frames == other.num_frames and all(bool((one.read(u) == other.read(u)).all()) for u in one.ids)
    if first.suffix == ".json":
        return _scores(first) == _scores(second)
    if first.suffix == ".npz":
        with np.load(first) as one_file, np.load(second) as other_file:
            arrays = [name for name in one_file if name not in ("source", "data")]
            equal = all(np.array_equal(one_file[name], other_file[name]) for name in arrays)
            return one_file.files == other_file.files and equal
    return first.read_bytes() == second.read_bytes()


def _scores(path: Path) -> Any:
    return {**json.loads(path.read_text()), "provenance": None}


def disturb(recipe: Recipe, lengths: dict[Unit, float], kills: int, each: int, draw: random.Random) -> Counter[int]:
    """Kill the recipe again and again, stage after stage. Returns how often each was hit."""
    units = sorted(lengths, key=list(lengths).index)
    hits: Counter[int] = Counter()
    plan = [stage for stage in STAGES for _ in range(each)]
    plan = sorted(plan + [draw.choice(STAGES) for _ in range(kills - len(plan))])
    misses = 0
    while plan:
        stage = plan[0]
        unit = draw.choice([unit for unit in units if unit[0] == stage])
        delay = draw.uniform(0, 0.9) * lengths[unit]
        changes = other_world(draw, recipe.folder)
        hit = recipe.killed_in(unit, delay, [], changes)
        if hit is None:  # it is past that: do the stage again, and what it needs is there
            hit = recipe.killed_in(unit, delay, ["--stage", str(stage), "--force", "true"], changes)
        if hit is None:
            misses += 1
            if misses > kills:
                raise UserError(f"stage {stage}: ends before it can be killed")
            continue
        hits[hit[0]] += 1
        if hit[0] in plan:  # else one more than planned
            plan.remove(hit[0])
        print(f"kill {sum(hits.values()):2}: stage {hit[0]} {hit[1]}, {delay:.1f} s into stage {stage}", flush=True)
    return hits


@exit_on_user_error
def main() -> None:
    """Disturb and compare."""
    parser = ArgumentParser(prog="kill_runs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=24, help="in all")
    parser.add_argument("--each", type=int, default=2, help="in every stage, at least")
    parser.add_argument("--scenes", type=int, default=60, help="training scenes of the mini corpus")
    parser.add_argument("--steps", type=int, default=24, help="of training; every fourth one saves")
    parser.add_argument("--head", default="parallel cascaded", help="heads to train")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of everything else that is drawn")
    parser.add_argument("--folder", default=None, help="where the copies go; has to be new")
    options = parser.parse_args()
    if options.kills < options.each * len(STAGES):
        raise UserError(f"--kills: {options.kills} are fewer than {options.each} in each of {len(STAGES)} stages")
    draw = random.Random(options.seed)
    words = ["--scenes", str(options.scenes), "--head", options.head, "--stop_stage", "7", "--"]
    words += ["--data.batch_size", "32"]
    words += ["--optim.max_steps", str(options.steps), "--optim.warmup_steps", "2", "--eval.bootstrap", "50"]
    words += ["--train.eval_interval", "4", "--train.log_interval", "2"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        whole, killed = (Recipe(folder / name, words) for name in ("whole", "killed"))
        lengths = whole.finish({})
        print("undisturbed: " + ", ".join(f"{at} {name} {seconds:.1f} s" for (at, name), seconds in lengths.items()))
        hits = disturb(killed, lengths, options.kills, options.each, draw)
        killed.finish({})
        if rest := killed.finish({}):
            raise UserError(f"after the end there is still something to do in {sorted(rest)}")
        count, wrong = differences(whole.folder, killed.folder)
        print(f"{sum(hits.values())} kills: " + ", ".join(f"{hits[at]} in stage {at}" for at in STAGES))
        if wrong:
            raise UserError(f"{len(wrong)} of {count} files differ: {' '.join(wrong)}")
        print(f"{count} files of weights, states, features, embeddings and scores: all equal to the undisturbed run's")


if __name__ == "__main__":
    main()
