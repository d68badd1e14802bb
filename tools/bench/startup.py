"""Benchmark 5: time of ``--help`` of every command, against the import of the heavy libraries."""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LEAST = 1e-3  # seconds; shorter times cannot be measured
HEAVY = (
    "import speechclip.common.compat; speechclip.common.compat.prepare(); "
    "import torch, transformers, open_clip, lightning_fabric"
)


def commands() -> dict[str, list[str]]:
    """Return every command of the project that has a --help, by name."""
    from speechclip.cli import COMMANDS

    found = {}
    scripts = sorted(p.stem for p in (ROOT / "speechclip" / "bin").glob("*.py") if p.stem != "__init__")
    for script in scripts:
        found[f"speechclip.bin.{script}"] = [sys.executable, "-m", f"speechclip.bin.{script}"]
    found["speechclip.upstream"] = [sys.executable, "-m", "speechclip.upstream"]
    for words in ([], *([name] for name in COMMANDS)):
        found[" ".join(["speechclip", *words])] = [sys.executable, "-m", "speechclip.cli", *words]
    folders = ("tools", "tools/measure", "egs/*/local")
    scripts_elsewhere = [path for folder in folders for path in ROOT.glob(f"{folder}/*.py")]
    for path in [*sorted(scripts_elsewhere), ROOT / "tools" / "bench" / "search_at_scale.py"]:
        if path.name != "doctor.py" and "parse_args" in path.read_text(encoding="utf-8"):
            found[str(path.relative_to(ROOT))] = [sys.executable, str(path)]
    found["tools/doctor"] = [str(ROOT / "tools" / "doctor")]
    folders = ("tools", "tools/bench", "egs/*", "egs/*/local")
    for path in sorted(path for folder in folders for path in ROOT.glob(f"{folder}/*.sh")):
        if path.name == "run.sh" or re.search("parse_options|--help", path.read_text(encoding="utf-8")):
            found[str(path.relative_to(ROOT))] = [str(path)]
    return found


def spent(command: list[str]) -> tuple[float, float]:
    """Return wall time and CPU time (children included) of a command, in seconds.

    Raises:
        RuntimeError: the command fails or prints no usage.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SPEECHCLIP_PYTHON": sys.executable}
    before, started = _used(), time.perf_counter()
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    clock, used = time.perf_counter() - started, _used() - before
    if ended.returncode or not re.search("usage|options", ended.stdout + ended.stderr, re.IGNORECASE):
        raise RuntimeError(f"{' '.join(command)}: status {ended.returncode}: {ended.stderr[-500:]}")
    return clock, max(used, LEAST)


def _used() -> float:
    """Return the CPU time of ended children. It is finer than os.times, which counts ticks of 10 ms."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def run(repeats: int, only: str = "") -> list[dict[str, Any]]:
    """Measure the medians of wall and CPU time. The first row is the import of the heavy libraries."""
    heavy = [_imported() for _ in range(repeats)]
    rows = [{"command": "import of torch, transformers, open_clip", "processor": statistics.median(heavy)}]
    for name, command in commands().items():
        if only and only not in name:
            continue
        spent([*command, "--help"])  # the first call compiles
        taken = [spent([*command, "--help"]) for _ in range(repeats)]
        clock, processor = (statistics.median(column) for column in zip(*taken))
        ratio = rows[0]["processor"] / processor
        rows.append({"command": name, "clock": clock, "processor": processor, "ratio": ratio})
        print(f"{name}: {processor:.2f} s of CPU time, {clock:.2f} s", flush=True)
    return rows


def _imported() -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = _used()
    subprocess.run([sys.executable, "-c", HEAVY], env=environment, check=True, capture_output=True, timeout=300)
    return _used() - before
