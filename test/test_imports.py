"""The order of imports, and that the help of a script waits for nothing heavy."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A module imports from levels before its own, or from its own package or file.
LEVELS = (
    ("constants",),
    ("errors", "compat", "matmul"),
    ("config", "folders", "device"),
    ("published", "settings"),
    ("data", "encoders", "heads", "losses"),
    ("model", "eval"),
    ("report",),
    ("checkpoint", "embed", "extract", "clip_embeddings"),
    ("pretrained", "pack"),
    ("train", "upstream", "search"),
    ("assemble",),
    ("bin",),
    ("cli",),
)
UPWARDS = {
    ("model", "pretrained"),  # SpeechCLIP.from_pretrained reads a checkpoint, which builds a model
    ("upstream", "bin"),  # its command line has this project's argument parser
}
UPSTREAM_SEES = {"errors", "constants", "compat", "config", "model", "checkpoint", "pretrained", "bin"}
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
SCRIPTS = sorted(path.stem for path in (ROOT / "speechclip" / "bin").glob("*.py") if path.stem != "__init__")
HEAVY = ("torch", "transformers", "open_clip", "librosa", "matplotlib", "lightning_fabric")


def _part(path: Path) -> str:
    """The first name below the package: ``data`` of speechclip/data/kaldi.py; the package itself is ``__init__``."""
    inside = path.relative_to(ROOT / "speechclip")
    return inside.parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Parts that a file imports anywhere, within functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("speechclip.")}
    return found


MODULES = sorted((ROOT / "speechclip").rglob("*.py"))


def test_every_module_has_its_place() -> None:
    unknown = {_part(path) for path in MODULES} - set(LEVEL) - {"__init__"}
    assert not unknown, "give it a level here, and in the page on the project's layout"
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_imports_go_one_way(path: Path) -> None:
    part = _part(path)
    if part == "__init__":
        assert _imports(path) <= {"model", "checkpoint"}  # the public names
        return
    for other in {name for name in _imports(path) - {part} if (part, name) not in UPWARDS}:
        assert LEVEL[other] < LEVEL[part], f"{part} imports {other}"


def test_the_upstream_sees_the_model_and_its_checkpoints_alone() -> None:
    seen = [_imports(path) - {"upstream"} for path in MODULES if _part(path) == "upstream"]
    assert {"model", "checkpoint"} <= set().union(*seen) <= UPSTREAM_SEES


def test_the_order_is_seen_to_be_broken(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from speechclip.bin.train import main\n    import speechclip.data.kaldi\n")
    assert _imports(wrong) == {"bin", "data"}
    assert LEVEL["bin"] > LEVEL["train"] > LEVEL["model"] > LEVEL["data"] > LEVEL["config"] > LEVEL["errors"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_complete_and_imports_nothing_heavy(script: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", f"speechclip.bin.{script}", "--help"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "--" in ended.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines() if "|" in line}
    assert "argparse" in imported  # the list is there
    assert not imported & set(HEAVY)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_option_is_one_line(script: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"speechclip.bin.{script}", "--no_such_option", "3"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (1, 2)
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_public_names_are_there() -> None:
    import speechclip
    from speechclip.model import SpeechCLIP

    assert speechclip.SpeechCLIP is SpeechCLIP
    for name in speechclip.__all__:
        assert getattr(speechclip, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = speechclip.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, speechclip; print([m for m in sys.modules if m.split('.')[0] in {HEAVY}])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
