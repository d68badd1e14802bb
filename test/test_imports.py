"""The import order, import cycles, and scripts whose --help imports nothing heavy."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The import order. A module imports from levels before its own, or from its own part. CONTRIBUTING.md shows the same
# table: `python test/test_imports.py` writes it there.
LEVELS = (
    ("common",),
    ("config",),
    ("convert", "data"),
    ("model",),
    ("checkpoint", "features"),
    ("api", "eval"),
    ("train", "upstream", "search", "report", "benchmarks"),
    ("bin",),
    ("cli",),
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
BEGIN, END = "<!-- imports: begin -->", "<!-- imports: end -->"
SCRIPTS = sorted(path.stem for path in (ROOT / "speechclip" / "bin").glob("*.py") if path.stem != "__init__")
HEAVY = ("torch", "transformers", "open_clip", "librosa", "matplotlib", "lightning_fabric")


def _part(path: Path) -> str:
    """Return the first name inside the package: ``data`` for speechclip/data/kaldi.py, ``__init__`` for the package."""
    inside = path.relative_to(ROOT / "speechclip")
    return inside.parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Return the parts that a file imports anywhere, also inside functions and for type checking."""
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


def test_every_module_has_a_level() -> None:
    unknown = {_part(path) for path in MODULES} - set(LEVEL) - {"__init__"}
    assert not unknown, "give it a level here"
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_imports_go_one_way(path: Path) -> None:
    part = _part(path)
    if part == "__init__":
        assert _imports(path) <= {"api"}  # the public names
        return
    for other in _imports(path) - {part, "__version__"}:
        assert LEVEL[other] < LEVEL[part], f"{part} imports {other}"


def test_wrong_imports_are_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from speechclip.bin.train import main\n    import speechclip.data.kaldi\n")
    assert _imports(wrong) == {"bin", "data"}
    assert LEVEL["bin"] > LEVEL["train"] > LEVEL["model"] > LEVEL["data"] > LEVEL["config"] > LEVEL["common"]


def _modules_imported(path: Path, known: set[str]) -> set[str]:
    """Return the modules of a set that a file imports at its top level, outside ``if TYPE_CHECKING``."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= names or {node.module} & known
    return found


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the names along a cycle of a graph; empty if the graph has no cycle."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_modules_have_no_import_cycle() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    graph = {name: _modules_imported(path, set(names)) - {name} for name, path in names.items()}
    assert _cycle(graph) == []
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


SCRIPT_FOLDERS = ["tools", "tools/bench", "tools/measure", "utils", "egs/mini/local", "egs/superb/local"]


@pytest.mark.parametrize("folder", SCRIPT_FOLDERS)
def test_scripts_have_no_import_cycle(folder: str) -> None:
    names = {path.stem: path for path in (ROOT / folder).glob("*.py")}
    assert names
    assert _cycle({name: _modules_imported(path, set(names)) - {name} for name, path in names.items()}) == []


def diagram() -> str:
    """Return the import order as CONTRIBUTING.md shows it."""
    width = max(len(", ".join(names)) for names in LEVELS)
    lines = [
        f"    {', '.join(names):{width}}  {'^' if number else ' '}".rstrip() for number, names in enumerate(LEVELS)
    ]
    return "\n".join([BEGIN, "", *reversed(lines), "", END])


def test_contributing_shows_the_import_order() -> None:
    assert diagram() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "run python test/test_imports.py"


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_help_imports_nothing_heavy(script: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", f"speechclip.bin.{script}", "--help"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "--" in ended.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines() if "|" in line}
    assert "argparse" in imported  # the list is there
    assert not imported & set(HEAVY)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_unknown_option_is_one_line(script: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"speechclip.bin.{script}", "--no_such_option", "3"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (1, 2)
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_package_exports_the_public_names() -> None:
    import speechclip
    from speechclip.api import SpeechCLIP

    assert speechclip.SpeechCLIP is SpeechCLIP
    for name in speechclip.__all__:
        assert getattr(speechclip, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = speechclip.nothing


def test_package_import_is_light() -> None:
    code = f"import sys, speechclip; print([m for m in sys.modules if m.split('.')[0] in {HEAVY}])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


if __name__ == "__main__":
    page = ROOT / "CONTRIBUTING.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(text[: text.index(BEGIN)] + diagram() + text[text.index(END) + len(END) :], encoding="utf-8")
