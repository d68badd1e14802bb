"""The regression check: ratios of small runs against the least that floors.json allows. Seconds are not compared.

CI runs it, on machines that do other work at the same time. It can, since what it compares is processor time in turn
and the memory of a process, neither of which waits for others; what a shared cache and memory still move is left room
for. Each floor is about half of the least of three runs on two busy cores; a lost optimisation ends far below, near 1
(start-up with torch at 3). That of extraction on equal batches is below 1 and tells only that this encoder became the
slower one: what oneDNN gains over MKL depends on the processor. All of it takes some 75 s of one core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

FLOORS = Path(__file__).resolve().with_name("floors.json")


def step_time() -> float:
    """A cascaded training step, batch 2, 2,000 subwords."""
    import measure
    import steps

    works = {kind: steps.make_step(kind, "small", "cascaded", 2, 2000) for kind in (measure.PLAIN, measure.OURS)}
    return measure.compare(measure.interleaved(works, 2))["ratio"]


def step_memory() -> float:
    """Peak memory of the same with the whole vocabulary: with less of it the transformer's share hides the rest."""
    import measure

    step = {"shape": "small", "head": "cascaded", "batch": 2}
    plain, ours = (measure.memory_in_child("step", {**step, "kind": kind}) for kind in (measure.PLAIN, measure.OURS))
    return plain / ours


def extraction_same_batches() -> float:
    """Hidden states of three of HuBERT Base's layers on equal batches; s3prl has to be installed."""
    import extraction

    rows = extraction.run("small", 4, 2)
    return float(next(row for row in rows if row["case"] == "same batches")["time"]["ratio"])


def scoring_from_scores() -> float:
    """Ranks of 2,500 utterances among 500 images, both directions."""
    import scoring

    return float(scoring.run(500, 5, 3)[0]["time"]["ratio"])


def store() -> float:
    """Random reads of 24 utterances."""
    import store as benchmark

    return float(benchmark.run("small", 24, 3)[0]["time"]["ratio"])


def startup() -> float:
    """The slowest --help of speechclip.bin against the import of what it works with; tests hold the others to it."""
    import startup as benchmark

    return min(float(row["ratio"]) for row in benchmark.run(1, "speechclip.bin")[1:])


CHECKS: dict[str, Callable[[], float]] = {
    work.__name__: work
    for work in (step_time, step_memory, extraction_same_batches, scoring_from_scores, store, startup)
}


def judge(found: dict[str, float], floors: dict[str, float]) -> list[str]:
    """What is below its floor, a line each. Raises ValueError where names do not agree."""
    if found.keys() != floors.keys():
        raise ValueError(f"floors of {sorted(floors)}, ratios of {sorted(found)}")
    low = [name for name in floors if found[name] < floors[name]]
    return [f"{name}: {found[name]:.2f}, at least {floors[name]} is wanted" for name in low]


def main() -> int:
    """Measure everything, once more what is too slow, and print a line each. 1 if a ratio stays below its floor."""
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
