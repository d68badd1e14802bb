"""Records what a finished stage depended on, and tells whether that still holds. Standard library only, for speed.

    stamp.py check STAMP < inputs     exit 0: up to date; 3: not, and why, on one line
    stamp.py write STAMP < inputs     records them; needs every output

`inputs` are lines of a kind, a tab and a value:
    value NAME=TEXT     a setting
    aside NAME=TEXT     the same, of no interest to later stages: where something is from, not what it is
    file PATH           compared by content (a folder: by all contents in it)
    script PATH         the same, of no interest to later stages where the outputs stay as they were
    path PATH           the user's own file or folder, compared by sizes and times
    after STAMP         the stamp of an earlier stage
    output PATH         must exist afterwards; what follows depends on its content
    shared PATH         the same, where other runs write the file too: it has to be as it was left
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

READ_WHOLE = 64 << 20  # bytes; a larger output is compared by size and time
MANY = 1000  # files in a folder of the user's from which on the folder's own time has to do


def content(path: Path) -> str:
    """Hash of a file's content, or of the names and contents below a folder; "absent" where there is none."""
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file() and "__pycache__" not in item.parts)
        return digest([[str(item.relative_to(path)), content(item)] for item in files])
    if not path.is_file():
        return "absent"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def identity(path: Path) -> str:
    """Sizes and modification times of a file or of a folder's content."""
    return digest(list(_identities(path))) if path.exists() else "absent"


def _identities(path: Path) -> Iterator[list[object]]:
    status = path.stat()
    yield [str(path), 0 if path.is_dir() else status.st_size, status.st_mtime_ns]
    if path.is_dir():
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir() or len(entries) <= MANY:
                yield from _identities(Path(entry.path))


def state(path: Path) -> str:
    """What later stages see of an output."""
    if path.is_file() and path.stat().st_size > READ_WHOLE:
        return identity(path)
    return content(path)


def digest(value: object) -> str:
    """Hash of plain containers."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def outcome(path: Path) -> str:
    """What a stage that comes after the one with this stamp depends on."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "absent"
    aside = stamp.get("aside", ())  # older stamps have none: what came after them saw all
    seen = {
        name: value for name, value in stamp["inputs"].items() if not name.startswith("script ") and name not in aside
    }
    return digest([seen, stamp["outputs"]])


class Described(NamedTuple):
    """A stage: its inputs, name to what each is now, and which of them are aside; its outputs, and which are shared."""

    inputs: dict[str, str]
    aside: list[str]
    outputs: list[str]
    shared: list[str]


def read_inputs(lines: list[str]) -> Described:
    """What the lines describe."""
    stage = Described({}, [], [], [])
    inputs = stage.inputs
    for line in lines:
        kind, _, value = line.rstrip("\n").partition("\t")
        if kind in ("value", "aside"):
            name, _, text = value.partition("=")
            inputs[name] = text
            if kind == "aside":
                stage.aside.append(name)
        elif kind == "file":
            inputs[value] = content(Path(value))
        elif kind == "script":
            inputs[f"script {value}"] = content(Path(value))
        elif kind == "path":
            inputs[value] = identity(Path(value))
        elif kind == "after":
            inputs[f"stage {Path(value).name}"] = outcome(Path(value))
        elif kind in ("output", "shared"):
            stage.outputs.append(value)
            if kind == "shared":
                stage.shared.append(value)
        else:
            raise SystemExit(f"error: stamp.py: unknown kind of input '{kind}'")
    return stage


def why_not(stamp: Path, stage: Described) -> str:
    """Why the stage has to run; empty where it is up to date."""
    try:
        old = json.loads(stamp.read_text(encoding="utf-8"))
    except OSError:
        return "not done yet"
    except ValueError:
        return f"{stamp} is damaged"
    for path in stage.outputs:
        if not os.path.exists(path):
            return f"{path} is missing"
    for name in sorted(stage.inputs.keys() | old["inputs"].keys()):
        before, now = old["inputs"].get(name), stage.inputs.get(name)
        if before != now:
            short = before is not None and now is not None and len(before) + len(now) < 60
            return f"{name} changed from '{before}' to '{now}'" if short else f"{name} changed"
    for path in stage.shared:
        if old["outputs"].get(path) != state(Path(path)):
            return f"{path} is another run's"
    return ""


def main() -> int:
    """Check or write one stamp."""
    action, stamp = sys.argv[1], Path(sys.argv[2])
    stage = read_inputs(sys.stdin.readlines())
    if action == "check":
        reason = why_not(stamp, stage)
        print(reason, end="\n" if reason else "")
        return 3 if reason else 0
    missing = [path for path in stage.outputs if not os.path.exists(path)]
    if missing:
        print(f"error: the stage ended without making {missing[0]}", file=sys.stderr)
        return 1
    stamp.parent.mkdir(parents=True, exist_ok=True)
    temporary = stamp.with_name(f".{stamp.name}.{os.getpid()}")
    record: dict[str, Any] = {"inputs": stage.inputs, "outputs": {path: state(Path(path)) for path in stage.outputs}}
    if stage.aside:
        record["aside"] = stage.aside
    temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in (*filter(os.path.isfile, stage.outputs), str(temporary)):  # done means on the disk
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    os.replace(temporary, stamp)
    return 0


if __name__ == "__main__":
    sys.exit(main())
