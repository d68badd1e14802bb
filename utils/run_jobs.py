"""Run a command as several jobs, here or through Slurm. Failed jobs run again.

    run_jobs.py [--launcher local|slurm] [--options="SBATCH OPTIONS"] [--retries N] [--dry_run]
                --jobs N --log FILE -- COMMAND [ARGUMENT...]

JOB in FILE and in the arguments of the command is replaced by the number of each job, from 1. Jobs store finished work
themselves, so a retry resumes. SIGTERM ends all jobs; the exit status is 75 if all have saved. Standard library only.
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
    """Replace JOB in a word of the command by the number of the job."""
    return re.sub(r"\bJOB\b", str(number), word)


def send_signal(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    """Send a signal to a job and its children, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)


def tail(path: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Local:
    """Jobs as processes of this machine, all at the same time. Each has its share of the cores and one of the GPUs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.log, self.command, self.total = options.log, options.command, options.jobs
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def environment(self, number: int) -> dict[str, str]:
        """Return the environment of one job. Settings of the user take precedence."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found = {"OMP_NUM_THREADS": str(max(1, cores // self.total)), **os.environ}
        devices = [item for item in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if item]
        devices = devices or [str(at) for at in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]
        if devices:
            found["CUDA_VISIBLE_DEVICES"] = devices[(number - 1) % len(devices)]
        return found

    def script(self, numbers: list[int]) -> str:
        """Return the commands, as a dry run prints them."""
        lines = []
        for number in numbers:
            words = " ".join(shlex.quote(of_job(word, number)) for word in self.command)
            lines.append(f"    {words} >>{of_job(self.log, number)} &")
        return "\n".join([*lines, "    wait"])

    def run(self, numbers: list[int]) -> dict[int, str]:
        """Run jobs, and return the reasons of the failed ones by number."""
        for number in numbers:
            path = Path(of_job(self.log, number))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as log:
                self.running[number] = subprocess.Popen(
                    [of_job(word, number) for word in self.command],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment(number),
                    start_new_session=True, close_fds=False, preexec_fn=die_with_parent,
                )  # fmt: skip
        print(f"{len(numbers)} jobs. Logs: {self.log}", flush=True)
        failed = {}
        for number in numbers:
            status = self.running[number].wait()
            if status:
                failed[number] = f"status {status if status > 0 else 128 - status}"
        self.running.clear()
        return failed

    def stop(self) -> bool:
        """End all jobs, and return whether each was finished or has saved its state."""
        for process in self.running.values():  # once: a second signal would kill a job that has saved and is ending
            send_signal(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for process in self.running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                send_signal(process, signal.SIGKILL)
                process.wait()
        return all(process.returncode in (0, STOPPED) for process in self.running.values())


class Slurm:
    """Jobs as one Slurm array. All machines must share the folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.log, self.command, self.options = Path(options.log).resolve(), options.command, options.options
        self.name = Path(options.log).name.split(".")[0] or "jobs"
        self.number = ""

    def script(self, numbers: list[int], done: str = "DONE") -> str:
        """Return the batch script. Each successful task writes a file with its number into ``done``."""
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
        """Submit jobs, wait, and return the reasons of the failed ones by number."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.log.parent, prefix=f".{self.name}.") as folder:
            path = Path(folder, "script.sh")
            path.write_text(self.script(numbers, folder) + "\n", encoding="utf-8")
            try:
                process = subprocess.Popen(
                    ["sbatch", "--wait", "--parsable", str(path)], stdout=subprocess.PIPE, text=True
                )
            except FileNotFoundError:
                sys.exit(
                    "error: sbatch: is not a program. Run on a cluster machine, or set jobs_launcher=local in cmd.sh."
                )
            assert process.stdout is not None
            self.number = process.stdout.readline().strip().split(";")[0]
            print(f"{self.name}: {len(numbers)} jobs submitted as {self.number or 'none'}", flush=True)
            if process.wait() == 0:
                return {}
            return {at: "its task did not succeed" for at in numbers if not Path(folder, str(at)).exists()}

    def stop(self) -> bool:
        """Cancel the array. Slurm sends SIGTERM to the tasks, and they save their state."""
        if self.number:
            subprocess.run(["scancel", self.number], check=False)
        return True


class Stopped(Exception):
    """A signal came; the argument is its number."""


def stop(number: int, _: FrameType | None) -> None:
    """Interrupt waiting."""
    raise Stopped(number)


def main() -> int:
    """Run all jobs, and return 0 if every job succeeded."""
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
    """Run jobs with retries, and return 0 if every job succeeded in the end."""
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
