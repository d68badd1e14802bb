#!/usr/bin/env python3
"""Measure memory and time of training on generated corpora of growing size.

For each size, a corpus is written (see scale_corpus.py). One process builds the memory-mapped tables, as stages 1 and 2
do. Then the training command runs. "Start" is the time from the command to the end of the first step. "Private" is the
highest memory of the process without the pages of mapped files, which the system can drop. Stored features have few
frames, so that they fit on a small disk. The dev split has 1,000 utterances at each size.

Usage: tools/measure/measure_scale.py [--utterances 100000 1000000 5000000] [--steps 20] [--joint 512] [--processes 1]
       [--folder DIR] [--seed 0]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scale_corpus import WIDTH, write_corpus

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DEV = 1000
BUILD = """
import sys
from speechclip.data.dataset import Split, StoreSource
data, dump = (f"{sys.argv[1]}/{name}/train" for name in ("data", "dump"))
StoreSource(dump, Split.load(data, dump).ids)
"""


@dataclass
class Run:
    """A training run as seen from outside.

    Attributes:
        first: seconds from its start to the end of the first step.
        first_cpu: seconds of processor time until then.
        total: seconds to its end.
        cpu: seconds of processor time, of all its processes.
        private: highest private memory of one process in bytes.
        resident: highest resident memory of one process in bytes, with the pages of mapped files.
    """

    first: float = 0.0
    first_cpu: float = 0.0
    total: float = 0.0
    cpu: float = 0.0
    private: int = 0
    resident: int = 0


def command(folder: Path, steps: int, processes: int, seed: int) -> list[str]:
    """Return the training command of a recipe, with a small head."""
    launch = [sys.executable]
    if processes > 1:
        launch += [str(ROOT / "utils/torchrun.py"), "--ngpu", str(processes), "--num_nodes", "1", "--endpoint", ""]
    settings = {
        "model.head.name": "mean", "data.batch_size": 256, "data.eval_batch_size": 256, "data.workers": 0,
        "optim.max_steps": steps, "optim.warmup_steps": 0, "train.log_interval": 1, "train.eval_interval": steps,
        "train.tensorboard_utterances": 0,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return [
        *launch, "-m", "speechclip.bin.train", *words, "--data_root", str(folder / "data"), "--dump_root",
        str(folder / "dump"), "--out", str(folder / "exp"), "--seed", str(seed), "--force", "true",
    ]  # fmt: skip


def watch(words: list[str], log: Path, mark: Path | None = None) -> Run:
    """Run a command, and watch its processes.

    Args:
        words: the command.
        log: receives its output.
        mark: a file with which the first step ends.

    Raises:
        UserError: the command failed.
    """
    run, started, used = Run(), time.monotonic(), os.times()
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
        while process.poll() is None:
            for number in (process.pid, *_children(process.pid)):
                private, resident = _memory(number)
                run.private, run.resident = max(run.private, private), max(run.resident, resident)
            if mark is not None and not run.first and mark.is_file() and mark.stat().st_size:
                run.first = time.monotonic() - started
                run.first_cpu = sum(_processor(number) for number in (process.pid, *_children(process.pid)))
            time.sleep(0.02)
    run.total, now = time.monotonic() - started, os.times()
    run.cpu = now.children_user + now.children_system - used.children_user - used.children_system
    if process.returncode:
        raise UserError(f"{log}: the command failed: {log.read_text()[-500:]}")
    return run


def measure(folder: Path, steps: int, processes: int = 1, seed: int = 0) -> Run:
    """Run the training command, and watch its processes."""
    shutil.rmtree(folder / "exp", ignore_errors=True)
    return watch(command(folder, steps, processes, seed), folder / "log", folder / "exp" / "metrics.jsonl")


def _children(number: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    try:
        found = [int(word) for word in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    except OSError:
        return []
    return found + [item for child in found for item in _children(child)]


def _processor(number: int) -> float:
    """Return the seconds of processor time of a process so far."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(number: int) -> tuple[int, int]:
    """Return private and resident memory of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return sizes.get("RssAnon", 0), sizes.get("VmRSS", 0)


def row(count: int, joint: int, steps: int, processes: int, folder: Path, seed: int) -> dict[str, float]:
    """Measure one size."""
    write_corpus(folder, "train", count, joint, seed)
    write_corpus(folder, "dev", DEV, joint, seed)
    built = watch([sys.executable, "-c", BUILD, str(folder)], folder / "log")
    trained = measure(folder, steps, processes, seed)
    mapped = [path for path in folder.rglob("*.npy") if path.parent.name.startswith(".")]
    return {
        "utterances": count, "build_cpu_s": built.cpu, "build_private": built.private, "start_s": trained.first,
        "start_cpu_s": trained.first_cpu,
        "total_s": trained.total, "cpu_s": trained.cpu, "private": trained.private, "resident": trained.resident,
        "tables": sum(path.stat().st_size for path in mapped),
    }  # fmt: skip


@exit_on_user_error
def main() -> None:
    """Measure all sizes, and print a table and the rows as JSON."""
    parser = ArgumentParser(prog="measure_scale.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--utterances", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000], help="sizes of the corpora"
    )
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--joint", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--processes", type=int, default=1, help="training processes, started by utils/torchrun.py")
    parser.add_argument("--folder", default=None, help="folder on the disk to measure (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of embeddings, features and training")
    options = parser.parse_args()

    from speechclip.common.provenance import commit

    print(f"stored features of width {WIDTH}, {options.processes} processes, seed {options.seed}, commit {commit()}")
    head = ["utterances", "private MB", "with mapped pages MB", "start s", "start CPU s", "training CPU s"]
    print(f"| {' | '.join([*head, 'building CPU s', 'building MB', 'tables GB'])} |\n|{'---:|' * 9}", flush=True)
    for count in options.utterances:
        if options.folder:
            Path(options.folder).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            found = row(count, options.joint, options.steps, options.processes, folder, options.seed)
        finally:
            shutil.rmtree(folder)
        cells = [f"{found[key] / 1e6:.0f}" for key in ("private", "resident")]
        cells += [f"{found[key]:.1f}" for key in ("start_s", "start_cpu_s", "cpu_s", "build_cpu_s")]
        cells += [f"{found['build_private'] / 1e6:.0f}", f"{found['tables'] / 1e9:.2f}"]
        print(f"| {count:,} | {' | '.join(cells)} |", flush=True)
        print(json.dumps(found), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
