"""Runs a command as several jobs, here or through Slurm, and those that fail once more.

    run_jobs.py [--launcher local|slurm] [--options="SBATCH OPTIONS"] [--retries N] [--dry_run]
                --jobs N --log FILE -- COMMAND [ARGUMENT...]

JOB in FILE and in the command's arguments is each job's number, from 1. What a job has finished it keeps itself: a
retry goes on where it was. SIGTERM ends all jobs, and this with status 75 where they have saved. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from run_logged import GRACE, STOPPED, die_with_parent


def of_job(word: str, number: object) -> str:
    """A word of the command with the job's number in it."""
    return re.sub(r"\bJOB\b", str(number), word)


def tell(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    """Send a signal to a job and its children, where it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)


def tail(path: Path) -> str:
    """The last line of a log."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "says nothing")


class Local:
    """Jobs as processes of this machine, all at once; each has its share of the cores and one of the GPUs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.log, self.command, self.total = options.log, options.command, options.jobs
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def environment(self, number: int) -> dict[str, str]:
        """Of one job: what the user has set stays."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found = {"OMP_NUM_THREADS": str(max(1, cores // self.total)), **os.environ}
        devices = [item for item in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if item]
        devices = devices or [str(at) for at in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]
        if devices:
            found["CUDA_VISIBLE_DEVICES"] = devices[(number - 1) % len(devices)]
        return found

    def script(self, numbers: list[int]) -> str:
        """What a dry run prints."""
        lines = []
        for number in numbers:
            words = " ".join(shlex.quote(of_job(word, number)) for word in self.command)
            lines.append(f"    {words} >>{of_job(self.log, number)} &")
        return "\n".join([*lines, "    wait"])

    def run(self, numbers: list[int]) -> dict[int, str]:
        """Run jobs; why those failed that did, by number."""
        for number in numbers:
            path = Path(of_job(self.log, number))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as log:
                self.running[number] = subprocess.Popen(
                    [of_job(word, number) for word in self.command],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment(number),
                    start_new_session=True, close_fds=False, preexec_fn=die_with_parent,
                )  # fmt: skip
        print(f"{len(numbers)} jobs; their logs: {self.log}", flush=True)
        failed = {}
        for number in numbers:
            status = self.running[number].wait()
            if status:
                failed[number] = f"status {status if status > 0 else 128 - status}"
        self.running.clear()
        return failed

    def stop(self) -> bool:
        """End what runs; whether every job was done or has saved."""
        for process in self.running.values():  # once: a second signal would kill one that has saved and is leaving
            tell(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for process in self.running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                tell(process, signal.SIGKILL)
                process.wait()
        return all(process.returncode in (0, STOPPED) for process in self.running.values())


class Slurm:
    """Jobs as one array of Slurm, waited for; the folder is one that all machines see."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.log, self.command, self.options = Path(options.log).resolve(), options.command, options.options
        self.name = Path(options.log).name.split(".")[0] or "jobs"
        self.number = ""

    def script(self, numbers: list[int], done: str = "DONE") -> str:
        """The batch script; every task that ends well leaves a file of its number in ``done``."""
        task = '"$SLURM_ARRAY_TASK_ID"'
        words = " ".join(
            task.join(shlex.quote(part) if part else "" for part in re.split(r"\bJOB\b", word)) or "''"
            for word in self.command
        )
        extra = [f"#SBATCH {option}" for option in shlex.split(self.options)]
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                f"#SBATCH --job-name={self.name}",
                f"#SBATCH --array={','.join(map(str, numbers))}",
                f"#SBATCH --output={of_job(str(self.log), '%a')}",
                "#SBATCH --open-mode=append",
                *extra,
                "set -euo pipefail",
                f"cd {shlex.quote(os.getcwd())}",
                words,
                f": >{shlex.quote(done)}/{task}",
            ]
        )

    def run(self, numbers: list[int]) -> dict[int, str]:
        """Submit jobs and wait; why those failed that did, by number."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.log.parent, prefix=f".{self.name}.") as folder:
            path = Path(folder, "script.sh")
            path.write_text(self.script(numbers, folder) + "\n", encoding="utf-8")
            try:
                process = subprocess.Popen(
                    ["sbatch", "--wait", "--parsable", str(path)], stdout=subprocess.PIPE, text=True
                )
            except FileNotFoundError:
                sys.exit("error: sbatch: no such program: is this a machine of the cluster? (jobs_launcher in cmd.sh)")
            assert process.stdout is not None
            self.number = process.stdout.readline().strip().split(";")[0]
            print(f"{self.name}: {len(numbers)} jobs submitted as {self.number or 'none'}", flush=True)
            if process.wait() == 0:
                return {}
            return {at: "no success of its task" for at in numbers if not Path(folder, str(at)).exists()}

    def stop(self) -> bool:
        """Take back what was submitted: Slurm asks the tasks to stop, and they save as anywhere."""
        if self.number:
            subprocess.run(["scancel", self.number], check=False)
        return True


class Stopped(Exception):
    """A signal, by its number."""


def stop(number: int, _: FrameType | None) -> None:
    """Leave whatever is waited for."""
    raise Stopped(number)


def main() -> int:
    """0 where every job has ended well."""
    parser = argparse.ArgumentParser(prog="run_jobs.py", allow_abbrev=False)
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument("--options", default="")
    parser.add_argument("--retries", type=int, default=2)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    launcher = Local(options) if options.launcher == "local" else Slurm(options)
    todo = list(range(1, options.jobs + 1))
    if options.dry_run:
        print(launcher.script(todo))
        return 0
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        return run(launcher, todo, options)
    except Stopped as signal_:
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, signal.SIG_IGN)
        return STOPPED if launcher.stop() else 128 + int(signal_.args[0])


def run(launcher: Local | Slurm, todo: list[int], options: argparse.Namespace) -> int:
    """0 where every job has ended well, some after a second attempt."""
    for attempt in range(options.retries + 1):
        failed = launcher.run(todo)
        for number in todo:
            if number not in failed:
                print(f"job {number} of {options.jobs}: {tail(Path(of_job(options.log, number)))}", flush=True)
        if not failed:
            return 0
        again = "trying again" if attempt < options.retries else "given up"
        for number, reason in failed.items():
            log = Path(of_job(options.log, number))
            print(f"job {number} of {options.jobs} failed ({reason}), {again}; {log}: {tail(log)}", flush=True)
        todo = list(failed)
    return 1


if __name__ == "__main__":
    sys.exit(main())
