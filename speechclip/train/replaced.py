"""Keeps the weights of an earlier run when another run starts in the same folder.

The earlier run stays where it is until the new run saves for the first time. Then it moves into
``replaced/<number>.part``, the new run is saved, and the folder gets its final name ``replaced/<number>``. A kill
between these steps is repaired by :func:`restore_interrupted`.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from speechclip.checkpoint.folder import WEIGHTS
from speechclip.common.files import sync

REPLACED = "replaced"
_WEIGHTS = ("last", "last.old", "best", "best.old")
#: Everything that belongs to one run. ``last`` moves first and returns last: its absence marks an unfinished move.
_RUN = (*_WEIGHTS, "metrics.jsonl", "tensorboard", "scores", "figures", "report", "pack", "pack.old")


def holds_weights(folder: Path) -> bool:
    """Return whether a run folder holds a checkpoint."""
    return any((folder / name / WEIGHTS).is_file() for name in _WEIGHTS)


def set_aside(folder: Path) -> Path:
    """Move the files of the run in ``folder`` into a new ``replaced/<number>.part``, and return that folder."""
    base = folder / REPLACED
    taken = {path.name.removesuffix(".part") for path in base.iterdir()} if base.is_dir() else set()
    number = next(str(number) for number in itertools.count(1) if str(number) not in taken)
    part = base / f"{number}.part"
    part.mkdir(parents=True)
    for name in _RUN:
        if (folder / name).exists():
            (folder / name).rename(part / name)
    return part


def keep(part: Path) -> Path:
    """Give the folder of :func:`set_aside` its final name, and return it."""
    target = part.with_suffix("")
    part.rename(target)
    sync(target.parent)
    return target


def restore_interrupted(folder: Path) -> None:
    """Finish or undo a replacement that a kill or an error interrupted.

    If the new run has saved ``last``, the earlier run keeps its place under ``replaced``. Otherwise it moves back, and
    what the new run wrote by then is removed: it could not be resumed from that.
    """
    for part in sorted((folder / REPLACED).glob("*.part")):
        if not any(part.iterdir()):
            part.rmdir()
        elif (folder / "last" / WEIGHTS).is_file():
            keep(part)
        else:
            for name in reversed(_RUN):
                if (part / name).exists():
                    target = folder / name
                    if target.is_dir():
                        shutil.rmtree(target)
                    (part / name).rename(target)
            part.rmdir()
