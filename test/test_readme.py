"""README.md: its Python prints the shown output, and its commands, pictures and links are valid.

`python test/test_readme.py` writes the printed output into README.md again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "egs").glob("*/README.md")), ROOT / "egs" / "README.md",
         ROOT / "utils" / "README.md"]  # fmt: skip
BEGIN, END = "<!-- output: begin -->\n```text\n", "```\n<!-- output: end -->"
RUN = "tools/install.sh && (cd egs/mini && ./run.sh)"
TEST = 'tools/install.sh --extras "dev s3prl fairseq search" && tools/test.sh'


def code_blocks(language: str) -> list[str]:
    """Return the code blocks of a language in README.md."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def printed() -> str:
    """Run the first Python block of README.md in the repository and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code_blocks("python")[0]]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def shown() -> str:
    """Return the output that README.md shows."""
    text = README.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def test_readme_python_prints_the_shown_output() -> None:
    assert len([line for line in code_blocks("python")[0].splitlines() if line]) == 8
    assert shown() == printed(), "run python test/test_readme.py"


@pytest.mark.parametrize(("name", "command"), [("run", RUN), ("test", TEST)])
def test_readme_marks_its_commands(name: str, command: str) -> None:
    assert f"<!-- command: {name} -->\n```bash\n{command}\n```\n" in README.read_text(encoding="utf-8")


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1100


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_of_a_page_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_recipe_has_a_readme() -> None:
    recipes = {path.parent for path in (ROOT / "egs").glob("*/run.sh")}
    assert {page.parent for page in PAGES} >= recipes


def test_readme_examples_parse() -> None:
    pattern = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = [block for page in PAGES for block in pattern.findall(page.read_text(encoding="utf-8"))]
    assert len(blocks) >= 4
    for block in blocks:
        compile(block, "README.md", "exec")


def test_shipped_files_are_small() -> None:
    models = ROOT / "egs" / "mini" / "models"
    assert sum(path.stat().st_size for path in models.rglob("*") if path.is_file()) <= 8_000_000
    figures = ROOT / "egs" / "mini" / "figures"
    assert {path.name for path in figures.iterdir()} == {
        "architecture.svg", "retrieval.png", "keywords.png", "search_page.png"
    }  # fmt: skip


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(text[:start] + printed() + text[end:], encoding="utf-8")
