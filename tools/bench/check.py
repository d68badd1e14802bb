"""The regression check: ratios of small runs against the floors in floors.json.

CI runs it on busy machines. It compares CPU time, measured in turn, and memory, because other processes change both
little. Each floor is about half of the lowest ratio of three runs on two busy cores. Without an optimisation, a ratio
falls far below its floor, to about 1 (start-up with torch: 3). The floor of extraction on equal batches is below 1: it
only shows that our encoder became slower than s3prl's, because the gain of oneDNN over MKL depends on the processor.
The check takes about 75 s on one core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

FLOORS = Path(__file__).resolve().with_name("floors.json")


def step_time() -> float:
    """Return the time ratio of a cascaded training step, batch size 2, 2,000 subwords."""
    import measure
    import steps

    works = {kind: steps.make_step(kind, "small", "cascaded", 2, 2000) for kind in (measure.PLAIN, measure.OURS)}
    return measure.compare(measure.interleaved(works, 2))["ratio"]


def step_memory() -> float:
    """Return the memory ratio of a step with the whole vocabulary. With fewer subwords the transformer dominates."""
    import measure

    step = {"shape": "small", "head": "cascaded", "batch": 2}
    plain, ours = (measure.memory_in_child("step", {**step, "kind": kind}) for kind in (measure.PLAIN, measure.OURS))
    return plain / ours


def extraction_same_batches() -> float:
    """Return the time ratio of three layers of HuBERT Base on equal batches. It needs s3prl."""
    import extraction

    rows = extraction.run("small", 4, 2)
    return float(next(row for row in rows if row["case"] == "same batches")["time"]["ratio"])


def scoring_from_scores() -> float:
    """Return the time ratio of ranking 2,500 utterances and 500 images in both directions."""
    import scoring

    return float(scoring.run(500, 5, 3)[0]["time"]["ratio"])


def store() -> float:
    """Return the time ratio of random reads of 24 utterances."""
    import store as benchmark

    return float(benchmark.run("small", 24, 3)[0]["time"]["ratio"])


def startup() -> float:
    """Return the ratio of the heavy imports to the slowest --help of speechclip.bin."""
    import startup as benchmark

    return min(float(row["ratio"]) for row in benchmark.run(1, "speechclip.bin")[1:])


CHECKS: dict[str, Callable[[], float]] = {
    work.__name__: work
    for work in (step_time, step_memory, extraction_same_batches, scoring_from_scores, store, startup)
}


def judge(found: dict[str, float], floors: dict[str, float]) -> list[str]:
    """Return one line per ratio below its floor.

    Raises:
        ValueError: the names of the floors and of the ratios differ.
    """
    if found.keys() != floors.keys():
        raise ValueError(f"floors of {sorted(floors)}, ratios of {sorted(found)}")
    low = [name for name in floors if found[name] < floors[name]]
    return [f"{name}: {found[name]:.2f}, at least {floors[name]} is required" for name in low]


def main() -> int:
    """Measure everything, repeat what is too slow, and print the ratios. Return 1 if a ratio stays below its floor."""
    floors: dict[str, float] = json.loads(FLOORS.read_text())
    found = {}
    for name, work in CHECKS.items():
        started = time.monotonic()
        found[name] = work()
        print(f"bench: {name}: {time.monotonic() - started:.0f} s", flush=True)
    for name in [name for name in floors if found[name] < floors[name]]:
        found[name] = max(found[name], CHECKS[name]())
    for name, ratio in found.items():
        print(f"bench: {name}: {ratio:.2f} (at least {floors[name]})")
    problems = judge(found, floors)
    for problem in problems:
        print(f"bench: FAILED: {problem}")
    return 1 if problems else 0
