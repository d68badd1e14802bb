"""The command ``speechclip``: its help and its subcommands, which import no heavy package for their help."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechclip import __version__
from speechclip.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "open_clip", "librosa", "matplotlib", "numpy"}


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "speechclip.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def _imported(ended: subprocess.CompletedProcess[str]) -> set[str]:
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines() if "|" in line}


def test_help_lists_every_command_without_heavy_imports() -> None:
    ended = _run("--help")
    assert ended.returncode == 0
    assert all(f"  {name} " in ended.stdout and command.help in ended.stdout for name, command in COMMANDS.items())
    assert not _imported(ended) & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_needs_no_heavy_imports(name: str) -> None:
    assert callable(importlib.import_module(COMMANDS[name].module).main)
    ended = _run(name, "--help")
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"usage: speechclip {name} ")
    assert not _imported(ended) & HEAVY


@pytest.mark.parametrize(("words", "reason"), [(["reprot"], "unknown command 'reprot'"), ([], "a command is needed")])
def test_unknown_command_lists_the_known_ones(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {reason} (known: {' '.join(COMMANDS)})\n"


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"speechclip {__version__}\n"
