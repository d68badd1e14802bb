"""Measurements: ratios of interleaved repetitions, peak memory of a fresh process, fitted exponents."""

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
#: With these settings glibc gives freed blocks of 128 KiB and more back at once.
RETURN_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """Return the seconds of one call: CPU time on a CPU, which other processes change little; wall time on a GPU."""
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
    """Measure functions in turn, ``repeats`` times, so that a slow machine slows all of them.

    Returns:
        Seconds of every repetition by name.
    """
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
    """Return the medians of plain and ours, and the median, lowest and highest ratio of the rounds."""
    ratios = sorted(plain / ours for plain, ours in zip(times[PLAIN], times[OURS], strict=True))
    return {
        "plain": statistics.median(times[PLAIN]),
        "ours": statistics.median(times[OURS]),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
    }


def fit_power(sizes: Sequence[float], costs: Sequence[float]) -> dict[str, float]:
    """Fit cost = coefficient * size ** exponent by least squares of the logarithms.

    Returns:
        "coefficient", "exponent", and "r2" of the logarithms.

    Raises:
        ValueError: fewer than two different sizes, or a value that is not positive.
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
    """Return the cost that a fitted power law predicts for a size."""
    return fit["coefficient"] * size ** fit["exponent"]


def fit_line(sizes: Sequence[float], costs: Sequence[float]) -> dict[str, float]:
    """Fit cost = start + slope * size by least squares.

    Raises:
        ValueError: fewer than two different sizes.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(costs, dtype=float)
    if len(x) != len(y) or len(np.unique(x)) < 2:
        raise ValueError(f"two different sizes with a cost each are needed, not {sizes} and {costs}")
    slope, start = np.polyfit(x, y, 1)
    return {"start": float(start), "slope": float(slope)}


def clock_seconds(work: Callable[[], Any]) -> float:
    """Return the wall time of one call, for functions that use several threads or start processes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory_in_child(work: str, arguments: Mapping[str, Any], timeout: float = 900) -> int:
    """Return the peak memory of a function of ``run.py``, less the memory before it starts, in a new process.

    The process returns freed blocks to the system. By default glibc raises its threshold with the first large blocks
    and then keeps 100 to 200 MB of freed activations, which is not memory that a step needs.

    Args:
        work: the name of the function.
        arguments: its arguments. The process has the number of threads of this one.
        timeout: seconds.

    Returns:
        Bytes.

    Raises:
        RuntimeError: the process fails. The message holds its output.
    """
    import torch

    threads = str(torch.get_num_threads())
    command = [sys.executable, str(RUN), "--threads", threads, "--child", json.dumps({"work": work, **arguments})]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **RETURN_BLOCKS}
    )
    if ended.returncode:
        raise RuntimeError(f"{work} {arguments}: status {ended.returncode}: {ended.stderr[-1500:]}")
    return int(json.loads(ended.stdout.splitlines()[-1])["peak"])


def peak_of(work: Callable[[], Any], device: str = "cpu") -> int:
    """Return the peak memory of a call less the memory before it, in bytes: resident, or that of tensors on a GPU."""
    gc.collect()
    if device != "cpu":
        return _peak_of_cuda(work)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: loading may have needed more
    except OSError:
        pass
    before = _peak_resident()
    work()
    return _peak_resident() - before


def _peak_of_cuda(work: Callable[[], Any]) -> int:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_resident() -> int:
    """Return the highest resident memory so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int:
    """Return the bytes that are available without swapping, or a large number if the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 62)


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, versions and threads."""
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
