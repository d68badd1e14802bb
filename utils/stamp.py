"""Record the inputs of a finished stage, and check whether they are still the same. Standard library only, for speed.

    stamp.py check STAMP < inputs     exit status 0: up to date; 3: not up to date, and one line says why
    stamp.py write STAMP < inputs     records the inputs; fails if an output is missing

Each line of `inputs` is a kind, a tab and a value:
    value NAME=TEXT     a setting
    aside NAME=TEXT     a setting that later stages ignore, such as the place that a file comes from
    file PATH           a file or folder, compared by content
    script PATH         the same; later stages ignore it
    path PATH           the user's own file or folder, compared by sizes and times
    after STAMP         the stamp of an earlier stage
    output PATH         must exist afterwards; later stages depend on its content
    shared PATH         an output that other runs write too; its content must be unchanged
    later outputs       later stages ignore all inputs of this stage, and depend on its outputs only
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

READ_WHOLE = 64 << 20  # bytes; larger outputs are compared by size and time
MANY = 1000  # in a user's folder with more files, only the time of the folder itself is compared


def content(path: Path) -> str:
    """Return the hash of a file, or of the names and contents below a folder; "absent" if the path is missing."""
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file() and "__pycache__" not in item.parts)
        return digest([[str(item.relative_to(path)), content(item)] for item in files])
    if not path.is_file():
        return "absent"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def identity(path: Path) -> str:
    """Return the hash of the sizes and times of a file or of everything below a folder; "absent" if it is missing."""
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
    """Return the hash of an output that later stages compare."""
    if path.is_file() and path.stat().st_size > READ_WHOLE:
        return identity(path)
    return content(path)


def digest(value: object) -> str:
    """Return the hash of plain containers."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def outcome(path: Path) -> str:
    """Return the hash of a stage that later stages compare: its inputs, unless they are aside, and its outputs."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "absent"
    seen = {name: value for name, value in stamp["inputs"].items() if name not in stamp["aside"]}
    return digest([seen, stamp["outputs"]])


class Described(NamedTuple):
    """The description of a stage.

    Attributes:
        inputs: the present value of each input, by name.
        aside: names of the inputs that later stages ignore.
        outputs: paths.
        shared: those outputs that other runs write too.
    """

    inputs: dict[str, str]
    aside: list[str]
    outputs: list[str]
    shared: list[str]


def read_inputs(lines: list[str]) -> Described:
    """Read the description of a stage."""
    stage = Described({}, [], [], [])
    inputs, outputs_only = stage.inputs, False
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
            stage.aside.append(f"script {value}")
        elif kind == "path":
            inputs[value] = identity(Path(value))
        elif kind == "after":
            inputs[f"stage {Path(value).name}"] = outcome(Path(value))
        elif kind in ("output", "shared"):
            stage.outputs.append(value)
            if kind == "shared":
                stage.shared.append(value)
        elif line.rstrip("\n") == "later\toutputs":
            outputs_only = True
        else:
            raise SystemExit(f"error: stamp.py: unknown kind of input '{kind}'")
    return stage._replace(aside=sorted(inputs)) if outputs_only else stage


def why_not(stamp: Path, stage: Described) -> str:
    """Return the reason why the stage must run; "" if it is up to date."""
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
            return f"another run has changed {path}"
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
        print(f"error: the stage ended without writing {missing[0]}", file=sys.stderr)
        return 1
    stamp.parent.mkdir(parents=True, exist_ok=True)
    temporary = stamp.with_name(f".{stamp.name}.{os.getpid()}")
    outputs = {path: state(Path(path)) for path in stage.outputs}
    record: dict[str, Any] = {"inputs": stage.inputs, "aside": stage.aside, "outputs": outputs}
    temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    # a stamp is valid only if the outputs are on the disk
    for path in (*filter(os.path.isfile, stage.outputs), str(temporary)):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    os.replace(temporary, stamp)
    return 0


if __name__ == "__main__":
    sys.exit(main())
