"""Benchmark 6: the stages of the mini recipe, from the log of ``./run.sh``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_DONE = re.compile(r"stage (\d) \((\w+)\)(?:: (.+?))?: done in (\d+) s")
# with several jobs, the log holds only the share of one job, so these lines are ignored
_AUDIO = re.compile(r"^(?!job ).*: (\d+) utterances, ([\d.]+) h of speech, in (\d+) s", re.MULTILINE)


def read_log(text: str) -> dict[str, Any]:
    """Return the seconds of every stage that ran, in order, and of extraction if one job did it.

    Raises:
        ValueError: a log without a finished stage.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    stages = [
        {"stage": int(number), "name": name, "run": run or "", "seconds": int(seconds)}
        for number, name, run, seconds in _DONE.findall(text)
    ]
    if not stages:
        raise ValueError("no line 'stage N (...): done in S s'")
    audio = [(int(count), float(hours), int(seconds)) for count, hours, seconds in _AUDIO.findall(text)]
    total = sum(row["seconds"] for row in stages)
    extraction = None
    if audio:
        hours, seconds = sum(row[1] for row in audio), max(1, sum(row[2] for row in audio))
        extraction = {"hours": hours, "seconds": seconds, "real_time": 3600 * hours / seconds}
    return {"stages": [{**row, "share": row["seconds"] / max(1, total)} for row in stages], "extraction": extraction}


def run(log: str) -> list[dict[str, Any]]:
    """Return the rows of a log file."""
    found = read_log(Path(log).read_text(encoding="utf-8", errors="replace"))
    rows: list[dict[str, Any]] = found["stages"]
    return [*rows, {"extraction": found["extraction"]}] if found["extraction"] else rows
