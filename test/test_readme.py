"""README.md: its generated parts are up to date, and its commands, pictures and links are valid."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "egs").glob("*/README.md")), ROOT / "egs" / "README.md",
         ROOT / "utils" / "README.md"]  # fmt: skip
RUN = "tools/install.sh && (cd egs/mini && ./run.sh)"
TEST = 'tools/install.sh --extras "dev s3prl fairseq search asr" && tools/test.sh'


def code_blocks(language: str) -> list[str]:
    """Return the code blocks of a language in README.md."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_readme_example_has_eight_lines() -> None:
    assert len([line for line in code_blocks("python")[0].splitlines() if line]) == 8


def test_readme_output_and_results_are_up_to_date() -> None:
    check = [sys.executable, ROOT / "tools" / "readme.py", "--check"]
    ended = subprocess.run(check, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, f"run tools/readme.py\n{ended.stdout}{ended.stderr}"


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
        "architecture.svg", "conditions.png", "retrieval.png", "keywords.png", "search_page.png"
    }  # fmt: skip
