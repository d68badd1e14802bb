"""How the benchmarks measure: ratios of interleaved repetitions, peak memory of a fresh process, fitted exponents."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PLAIN, OURS = "plain", "ours"
RUN = Path(__file__).resolve().with_name("run.py")


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """Time of one call: on a CPU the processor's own, which other processes move little; on a GPU by the clock."""
    if device == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    import torch

    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def interleaved(
    works: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each work, ``repeats`` times, in turn, so that what slows the machine down slows all of them."""
    if warm_up:
        for work in works.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            gc.collect()
            times[name].append(seconds(work, device))
    return times


def compare(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians of plain and ours, and the ratio: median, lowest and highest of the rounds."""
    ratios = sorted(plain / ours for plain, ours in zip(times[PLAIN], times[OURS], strict=True))
    return {
        "plain": statistics.median(times[PLAIN]),
        "ours": statistics.median(times[OURS]),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
    }


def fit_power(sizes: Sequence[float], costs: Sequence[float]) -> dict[str, float]:
    """cost = coefficient * size ** exponent, by least squares of the logarithms; r2 of those.

    Raises ValueError for fewer than two different sizes, or a value that is not positive.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(costs, dtype=float)
    if len(x) != len(y) or len(np.unique(x)) < 2 or (x <= 0).any() or (y <= 0).any():
        raise ValueError(f"two different positive sizes with positive costs are needed, not {sizes} and {costs}")
    x, y = np.log(x), np.log(y)
    exponent, offset = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    r2 = 1.0 if spread == 0 else 1 - ((y - offset - exponent * x) ** 2).sum() / spread
    return {"coefficient": float(np.exp(offset)), "exponent": float(exponent), "r2": float(r2)}


def predict(fit: Mapping[str, float], size: float) -> float:
    """What a fitted power law says about a size."""
    return fit["coefficient"] * size ** fit["exponent"]


def fit_line(sizes: Sequence[float], costs: Sequence[float]) -> dict[str, float]:
    """cost = start + slope * size, by least squares. Raises ValueError for fewer than two different sizes."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(costs, dtype=float)
    if len(x) != len(y) or len(np.unique(x)) < 2:
        raise ValueError(f"two different sizes with a cost each are needed, not {sizes} and {costs}")
    slope, start = np.polyfit(x, y, 1)
    return {"start": float(start), "slope": float(slope)}


def clock_seconds(work: Callable[[], Any]) -> float:
    """Seconds of the clock of one call: what threads share, and what other processes of a build take, counts once."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory_in_child(work: str, arguments: Mapping[str, Any], timeout: float = 900) -> int:
    """Peak bytes that a named work of ``run.py`` needs beyond what it holds before it starts, in a process of its own.

    The process has as many threads as this one. Raises RuntimeError where the process fails, with what it said.
    """
    import torch

    threads = str(torch.get_num_threads())
    command = [sys.executable, str(RUN), "--threads", threads, "--child", json.dumps({"work": work, **arguments})]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if ended.returncode:
        raise RuntimeError(f"{work} {arguments}: status {ended.returncode}: {ended.stderr[-1500:]}")
    return int(json.loads(ended.stdout.splitlines()[-1])["peak"])


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes of resident memory at the peak of a call, less those before it."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading may have needed more
    except OSError:
        pass
    before = _peak_resident()
    work()
    return _peak_resident() - before


def _peak_resident() -> int:
    """Highest resident memory so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int:
    """Bytes that can be had without swapping; a large number where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 62)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions and threads."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        rows = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        rows = {key.strip(): value.strip() for key, value in rows.items()}
        name = rows.get("model name", name)
        name += f" (family {rows['cpu family']}, model {rows['model']})" if "cpu family" in rows else ""
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "load": [round(value, 1) for value in os.getloadavg()],
    }
