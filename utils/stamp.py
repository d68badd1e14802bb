"""Records what a finished stage depended on, and tells whether that still holds. Standard library only, for speed.

    stamp.py check STAMP < inputs     exit 0: up to date; 3: not, and why, on one line
    stamp.py write STAMP < inputs     records them; needs every output

`inputs` are lines of a kind, a tab and a value:
    value NAME=TEXT     a setting
    file PATH           compared by content (a folder: by all contents in it)
    script PATH         the same, of no interest to later stages where the outputs stay as they were
    path PATH           the user's own file or folder, compared by sizes and times
    after STAMP         the stamp of an earlier stage
    output PATH         must exist afterwards; what follows depends on its content
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

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
    seen = {name: value for name, value in stamp["inputs"].items() if not name.startswith("script ")}
    return digest([seen, stamp["outputs"]])


def read_inputs(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """The inputs, name to what it is now, and the outputs."""
    inputs: dict[str, str] = {}
    outputs: list[str] = []
    for line in lines:
        kind, _, value = line.rstrip("\n").partition("\t")
        if kind == "value":
            name, _, text = value.partition("=")
            inputs[name] = text
        elif kind == "file":
            inputs[value] = content(Path(value))
        elif kind == "script":
            inputs[f"script {value}"] = content(Path(value))
        elif kind == "path":
            inputs[value] = identity(Path(value))
        elif kind == "after":
            inputs[f"stage {Path(value).name}"] = outcome(Path(value))
        elif kind == "output":
            outputs.append(value)
        else:
            raise SystemExit(f"error: stamp.py: unknown kind of input '{kind}'")
    return inputs, outputs


def why_not(stamp: Path, inputs: dict[str, str], outputs: list[str]) -> str:
    """Why the stage has to run; empty where it is up to date."""
    try:
        old = json.loads(stamp.read_text(encoding="utf-8"))
    except OSError:
        return "not done yet"
    except ValueError:
        return f"{stamp} is damaged"
    for path in outputs:
        if not os.path.exists(path):
            return f"{path} is missing"
    for name in sorted(inputs.keys() | old["inputs"].keys()):
        before, now = old["inputs"].get(name), inputs.get(name)
        if before != now:
            short = before is not None and now is not None and len(before) + len(now) < 60
            return f"{name} changed from '{before}' to '{now}'" if short else f"{name} changed"
    return ""


def main() -> int:
    """Check or write one stamp."""
    action, stamp = sys.argv[1], Path(sys.argv[2])
    inputs, outputs = read_inputs(sys.stdin.readlines())
    if action == "check":
        reason = why_not(stamp, inputs, outputs)
        print(reason, end="\n" if reason else "")
        return 3 if reason else 0
    missing = [path for path in outputs if not os.path.exists(path)]
    if missing:
        print(f"error: the stage ended without making {missing[0]}", file=sys.stderr)
        return 1
    stamp.parent.mkdir(parents=True, exist_ok=True)
    temporary = stamp.with_name(f".{stamp.name}.{os.getpid()}")
    record = {"inputs": inputs, "outputs": {path: state(Path(path)) for path in outputs}}
    temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, stamp)
    return 0


if __name__ == "__main__":
    sys.exit(main())
