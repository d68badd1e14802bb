"""The origin of a result: commit, versions, command, seed and data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "open-clip-torch", "lightning-fabric", "numpy", "safetensors")


def provenance(*, command: list[str] | None, seed: int | None, data: Iterable[Path]) -> dict[str, Any]:
    """Return commit, versions, command, seed and fingerprints of the data directories.

    Args:
        command: the command line; None for that of this process.
        seed: the seed; None if it is unknown.
        data: data directories.
    """
    import torch

    if command is None:
        script = getattr(sys.modules["__main__"], "__spec__", None)
        command = (["python", "-m", script.name] if script else [sys.argv[0]]) + sys.argv[1:]
    return {
        "command": " ".join(command),
        "recipe_command": os.environ.get("SPEECHCLIP_RECIPE_COMMAND", ""),
        "seed": seed,
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "data": {path.name: fingerprint(path) for path in data},
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """Return the commit of this checkout, or the version if the package is installed without one.

    ``-dirty`` is appended if a tracked file differs. Result files do not count: RESULTS.md, results.jsonl and the
    pictures of layer weights.
    """
    root = Path(__file__).resolve().parents[2]
    results = [":!egs/*/RESULTS.md", ":!egs/*/results.jsonl", ":!egs/*/layer_weights.*"]
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *results)
    except (OSError, subprocess.CalledProcessError):
        return f"v{importlib.metadata.version('speechclip')}" if _installed() else "unknown"
    return head + ("-dirty" if changed else "")


def _installed() -> bool:
    return any(item.metadata["Name"] == "speechclip" for item in importlib.metadata.distributions())


def _git(root: Path, *words: str) -> str:
    answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def fingerprint(directory: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 over the tables of a data directory."""
    digest = hashlib.sha256()
    for name in ("wav.scp", "text", "utt2spk", "utt2img", "img.scp"):
        digest.update(f"{name}\n".encode())
        with (directory / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
