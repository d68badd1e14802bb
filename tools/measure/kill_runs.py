#!/usr/bin/env python3
"""Kill a small run of egs/mini at random moments, restart it, and compare its results with an undisturbed run.

An undisturbed run in a copy of the recipe measures the duration of each stage. In a second copy every stage is killed
at least --each times, and --kills times in all (SIGKILL, every process). Each restart has another locale, time zone and
hash seed, and sometimes file times that are years off. At the end weights, trainer states, stored features, embeddings
and scores must equal those of the undisturbed run bit by bit.

A third copy checks that trained weights survive (see :func:`check_weights_survive`): SIGTERM and another version,
settings that change the weights, kills while training starts over, and settings that do not fit the data.

Usage: tools/measure/kill_runs.py [--kills 24] [--each 2] [--scenes 60] [--steps 24] [--head "parallel cascaded"]
       [--seed 0] [--folder DIR] (kept; by default a temporary one)
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STAGES = range(8)
MARK = "SPEECHCLIP_KILL_RUNS"  # in the environment of every process of a run
LINE = re.compile(r"^stage (\d) \(\w+\)(?:: ([^:]*))?: (.*)$")
Unit = tuple[int, str]  # a stage, and the run it works on


class Recipe:
    """A copy of the repository as far as a recipe needs it, with egs/mini in it."""

    def __init__(self, top: Path, words: list[str]) -> None:
        for name in ("egs", "utils", "speechclip"):
            made = ("__pycache__", *(("corpus", "data", "dump", "exp") if name == "egs" else ()))
            shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns(*made))
        self.folder, self.words, self.mark = top / "egs" / "mini", words, f"{os.getpid()}.{top.name}"
        self.output = top / "output.txt"

    def start(
        self, options: list[str], changes: dict[str, str], overrides: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start ./run.sh with these options before the shared ones."""
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment = {**kept, "SPEECHCLIP_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **changes, MARK: self.mark}
        with self.output.open("wb") as output:
            return subprocess.Popen(
                ["./run.sh", *options, *self.words, *overrides], cwd=self.folder, env=environment,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def stages(self) -> list[tuple[Unit, str]]:
        """Return (stage, log message) for each line about a stage so far."""
        found = map(LINE.match, self.output.read_text(errors="replace").split("\n")[:-1])
        return [((int(line[1]), line[2] or ""), line[3]) for line in found if line]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill all processes of the run at the same time, like a power cut."""
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
        """Run to the end, and return the seconds of every stage that was not up to date."""
        process, lengths, starts, shown = self.start([], changes), {}, {}, 0
        while True:
            ended = process.poll() is not None  # asked before the last look
            for unit, printed in self.stages()[shown:]:
                shown, now = shown + 1, time.monotonic()
                if printed.startswith("done in"):
                    lengths[unit] = now - starts[unit]
                starts.setdefault(unit, now)
            if ended:
                break
            time.sleep(0.05)
        self.check(process)
        return lengths

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """Check the exit status of a run that ended by itself.

        Raises:
            UserError: the run failed.
        """
        if process.returncode not in (0, -signal.SIGKILL):
            lines = self.output.read_text(errors="replace").strip().split("\n")
            raise UserError(f"{self.folder}: ended with status {process.returncode}: {lines[-1]}")

    def run(self, *options: str, overrides: Sequence[str] = (), status: int = 0) -> str:
        """Run to the end with more configuration overrides, check the exit status, and return the output.

        Raises:
            UserError: another exit status.
        """
        process = self.start(list(options), {}, overrides)
        process.wait()
        printed = self.output.read_text(errors="replace")
        if process.returncode != status:
            last = printed.strip().split("\n")[-1]
            raise UserError(f"{self.folder}: ended with status {process.returncode} instead of {status}: {last}")
        return printed

    def weights(self, run: str) -> dict[str, bytes]:
        """Return the weights of a run, by their path below exp/."""
        base = self.folder / "exp"
        return {str(path.relative_to(base)): path.read_bytes() for name in ("best", "last")
                for path in [base / run / name / "model.safetensors"] if path.is_file()}  # fmt: skip

    def killed_in(self, unit: Unit, delay: float, options: list[str], changes: dict[str, str]) -> Unit | None:
        """Start, kill ``delay`` seconds into a stage, and return the stage that was hit, if any."""
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
        """Return the stages that have started and not ended."""
        return [unit for unit, printed in self.stages() if not printed.startswith(("up to date", "done in"))]


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid())


def _environment(number: int) -> list[bytes]:
    try:
        return Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    except OSError:  # the process has ended, or belongs to another user
        return []


def other_world(draw: random.Random, folder: Path) -> dict[str, str]:
    """Return an environment for the next start. One time in three, change the times of all files by years."""
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
    """Return the number of compared files, and the names of those that differ."""
    names = sorted(
        str(path.relative_to(whole))
        for pattern in ("data/*/*", "data/*.tsv", "dump/*/*/*.npz", "dump/*/*/feats.scp", "exp/*/*/*.safetensors",
                        "exp/*/*/vocabulary.tsv", "exp/*/scores/*.npz", "exp/*/scores/*.json*")
        for path in whole.glob(pattern)
        if not path.parent.name.startswith((".", "log")) and not path.parent.name.endswith(".old")
    )  # fmt: skip
    return len(names), [name for name in names if not same(whole / name, killed / name)]


def same(first: Path, second: Path) -> bool:
    """Return whether two files have equal content. The provenance of a score is ignored."""
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
    """Kill the recipe many times, stage after stage. Return how often each stage was hit."""
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
        if hit is None:  # the stage is finished: run it again
            hit = recipe.killed_in(unit, delay, ["--stage", str(stage), "--force", "true"], changes)
        if hit is None:
            misses += 1
            if misses > kills:
                raise UserError(f"stage {stage}: ends before it can be killed. Use more --scenes or --steps.")
            continue
        hits[hit[0]] += 1
        if hit[0] in plan:  # otherwise it is one more than planned
            plan.remove(hit[0])
        print(f"kill {sum(hits.values()):2}: stage {hit[0]} {hit[1]}, {delay:.1f} s into stage {stage}", flush=True)
    return hits


def check_weights_survive(recipe: Recipe, whole: Recipe, draw: random.Random) -> Iterator[str]:
    """Check that no start without --force deletes trained weights. Yield a line for each case.

    Args:
        recipe: a fresh copy, whose options select no head and no stage.
        whole: the finished, undisturbed run.
        draw: chooses the moments of kills.

    Raises:
        UserError: weights are missing or differ.
    """
    run, other = "tiny_parallel", ["--optim.lr", "2e-4"]
    stage_3 = ["--head", "parallel", "--stage", "3", "--stop_stage", "3"]

    def expect(condition: bool, problem: str) -> None:
        if not condition:
            raise UserError(f"{recipe.folder / 'exp' / run}: {problem}")

    recipe.run("--head", "parallel", "--stop_stage", "2")
    process = recipe.start(stage_3, {})
    state = recipe.folder / "exp" / run / "last" / "training_state.json"
    while process.poll() is None and not state.is_file():
        time.sleep(0.02)
    process.terminate()
    process.wait()
    expect(process.returncode in (0, 75), f"SIGTERM ended with status {process.returncode}")
    step = json.loads(state.read_text())["step"]
    module = recipe.folder.parents[1] / "speechclip" / "__init__.py"
    text = module.read_text()
    module.write_text(re.sub(r'^__version__ = ".*"$', '__version__ = "99.0"', text, flags=re.MULTILINE))
    printed = recipe.run("--head", "parallel", "--stop_stage", "3")
    expect(printed.count("up to date") == 3, "another version ran stages 0 to 2 again")
    expect(f"resuming after step {step}" in printed or "already trained" in printed, "another version started over")
    finished = recipe.weights(run)
    expect(finished == whole.weights(run), "the weights differ from the undisturbed run")
    yield f"SIGTERM after step {step}, another version: resumed, equal weights, stages 0 to 2 up to date"

    printed = recipe.run(*stage_3, overrides=["--data.batch_size", "100000"], status=1)
    expect(recipe.weights(run) == finished, "a batch larger than the data changed the weights")
    yield "batch larger than the data: " + next(line for line in printed.split("\n") if line.startswith("error: data."))

    for overrides in (["--train.log_interval", "1"], ["--data.workers", "1"], ["--train.tensorboard_utterances", "0"]):
        printed = recipe.run(*stage_3, overrides=overrides)
        expect("up to date" in printed or "already trained" in printed, f"{overrides[0]} trained again")
        expect(recipe.weights(run) == finished, f"{overrides[0]} changed the weights")
    yield "logging, workers and TensorBoard: nothing trained"

    for _ in range(3):
        process = recipe.start(stage_3, {}, other)
        while process.poll() is None and (3, f"{run} seed 0") not in recipe.at_work():
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 8))
        recipe.kill(process)
        kept = [recipe.weights(run), *(recipe.weights(f"{run}/{path.parent.name}/{path.name}")
                                       for path in (recipe.folder / "exp" / run).glob("replaced/*"))]  # fmt: skip
        found = any(sorted(item.values()) == sorted(finished.values()) for item in kept)
        expect(found, "a kill while training started over lost the earlier weights")
    recipe.run(*stage_3, overrides=other)
    earlier = recipe.weights(f"{run}/replaced/1")
    expect(sorted(earlier.values()) == sorted(finished.values()), "replaced/1 does not hold the earlier weights")
    expect(recipe.weights(run) != finished, "another learning rate trained equal weights")
    yield "another learning rate, killed three times: the earlier weights are in replaced/1"


@exit_on_user_error
def main() -> None:
    """Kill, restart and compare."""
    parser = ArgumentParser(prog="kill_runs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=24, help="number of kills")
    parser.add_argument("--each", type=int, default=2, help="smallest number of kills in each stage")
    parser.add_argument("--scenes", type=int, default=60, help="training scenes of the mini corpus")
    parser.add_argument("--steps", type=int, default=24, help="training steps; every fourth one saves")
    parser.add_argument("--head", default="parallel cascaded", help="heads to train")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--folder", default=None, help="folder of the copies; must be new")
    options = parser.parse_args()
    if options.kills < options.each * len(STAGES):
        raise UserError(
            f"--kills: {options.kills} is less than {options.each} in each of {len(STAGES)} stages. Use more."
        )
    draw = random.Random(options.seed)
    corpus = ["--scenes", str(options.scenes)]
    training = ["--", "--data.batch_size", "32"]
    training += ["--optim.max_steps", str(options.steps), "--optim.warmup_steps", "2", "--eval.bootstrap", "50"]
    training += ["--train.eval_interval", "4", "--train.log_interval", "2"]
    words = [*corpus, "--head", options.head, "--stop_stage", "7", *training]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        whole, killed = (Recipe(folder / name, words) for name in ("whole", "killed"))
        lengths = whole.finish({})
        print("undisturbed: " + ", ".join(f"{at} {name} {seconds:.1f} s" for (at, name), seconds in lengths.items()))
        hits = disturb(killed, lengths, options.kills, options.each, draw)
        killed.finish({})
        if rest := killed.finish({}):
            raise UserError(f"{killed.folder}: after the end these stages still ran: {sorted(rest)}")
        count, wrong = differences(whole.folder, killed.folder)
        print(f"{sum(hits.values())} kills: " + ", ".join(f"{hits[at]} in stage {at}" for at in STAGES))
        if wrong:
            raise UserError(f"{killed.folder}: {len(wrong)} of {count} files differ: {' '.join(wrong)}")
        print(f"{count} files of weights, states, features, embeddings and scores: all equal to the undisturbed run's")
        survivor = Recipe(folder / "weights", [*corpus, *training])
        for line in check_weights_survive(survivor, whole, draw):
            print(line, flush=True)


if __name__ == "__main__":
    main()
