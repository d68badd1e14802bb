"""Helpers of the two pretraining scripts: provenance, half precision, atomic model folders, progress lines."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechclip.common.provenance import commit


def provenance(seed: int, packages: Sequence[str], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return command, seed, commit, versions and measured figures, for provenance.json."""
    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "measured": dict(measured),
    }


def save_half(state: Mapping[str, Any], path: Path) -> None:
    """Save a state dict as fp16 safetensors. Integer tensors keep their type."""
    from safetensors.torch import save_file

    tensors = {
        key: (value.half() if value.is_floating_point() else value).contiguous().cpu().clone()
        for key, value in state.items()
    }
    save_file(tensors, str(path), metadata={"format": "pt"})


def publish(temporary: Path, out: Path) -> None:
    """Rename the finished folder ``temporary`` to ``out`` and remove an older ``out``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


class Progress:
    """Prints step, rate, remaining time and a note, at most once every ``every`` seconds."""

    def __init__(self, name: str, total: int, every: float = 15.0) -> None:
        self.name, self.total, self.every = name, total, every
        self.started = self.last = time.monotonic()

    def step(self, done: int, note: str) -> None:
        """Print a line if it is due. done: number of finished steps."""
        now = time.monotonic()
        if now - self.last < self.every and done < self.total:
            return
        self.last = now
        rate = done / max(1e-9, now - self.started)
        left = (self.total - done) / max(1e-9, rate)
        print(f"{self.name} {done}/{self.total} {note} {rate:.2f}/s {left:.0f} s left", flush=True)
