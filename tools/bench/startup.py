"""Benchmark 5: from a command to its --help, for every command; against importing what the command works with."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEAVY = "import speechclip.compat; speechclip.compat.prepare(); import torch, transformers, open_clip, lightning_fabric"


def commands() -> dict[str, list[str]]:
    """Every command of the collection that has a --help, by name."""
    found = {}
    scripts = sorted(p.stem for p in (ROOT / "speechclip" / "bin").glob("*.py") if p.stem != "__init__")
    for script in scripts:
        found[f"speechclip.bin.{script}"] = [sys.executable, "-m", f"speechclip.bin.{script}"]
    found["speechclip.upstream"] = [sys.executable, "-m", "speechclip.upstream"]
    if (ROOT / "speechclip" / "cli.py").is_file():
        found["speechclip"] = [sys.executable, "-m", "speechclip.cli"]
    for path in sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "egs").glob("*/local/*.py")]):
        if path.name != "doctor.py" and "parse_args" in path.read_text(encoding="utf-8"):
            found[str(path.relative_to(ROOT))] = [sys.executable, str(path)]
    found["tools/doctor"] = [str(ROOT / "tools" / "doctor")]
    for path in sorted((ROOT / "egs").glob("*/run.sh")):
        found[str(path.relative_to(ROOT))] = [str(path)]
    return found


def spent(command: list[str]) -> tuple[float, float]:
    """Seconds of the clock and of the processor (children included) that a command takes; RuntimeError if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SPEECHCLIP_PYTHON": sys.executable}
    before, started = os.times(), time.perf_counter()
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    clock, after = time.perf_counter() - started, os.times()
    if ended.returncode or "usage" not in (ended.stdout + ended.stderr).lower():
        raise RuntimeError(f"{' '.join(command)}: status {ended.returncode}: {ended.stderr[-500:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return clock, used


def run(repeats: int, only: str = "") -> list[dict[str, Any]]:
    """Rows: medians of clock and processor; the first row is the heavy import that none of them waits for."""
    heavy = [_imported() for _ in range(repeats)]
    rows = [{"command": "import of torch, transformers, open_clip", "processor": statistics.median(heavy)}]
    for name, command in commands().items():
        if only and only not in name:
            continue
        spent([*command, "--help"])  # the first one compiles
        taken = [spent([*command, "--help"]) for _ in range(repeats)]
        clock, processor = (statistics.median(column) for column in zip(*taken))
        ratio = rows[0]["processor"] / processor
        rows.append({"command": name, "clock": clock, "processor": processor, "ratio": ratio})
        print(f"{name}: {processor:.2f} s of the processor, {clock:.2f} s", flush=True)
    return rows


def _imported() -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = os.times()
    subprocess.run([sys.executable, "-c", HEAVY], env=environment, check=True, capture_output=True, timeout=300)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system
