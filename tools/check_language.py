"""Find sentences and test names that break the language rules of CONTRIBUTING.md.

    python tools/check_language.py [FILE ...]

Without files it checks every tracked Python, shell, Markdown, HTML, CSS and JavaScript file. It prints one line per
finding and exits with status 1 if there is one. A line that has to contain such a phrase ends with the comment
``language: ok``.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".sh", ".md", ".j2", ".html", ".js", ".css", ".yaml", ".ipynb"}
MAX_TEST_NAME = 60  # characters
#: (phrase, what to write)
PHRASES = [
    (r"\b(is|are|was|were|be|been) (told|said)\b(?! to be)", "name who logs, prints or documents it"),
    (r"\bsaid aloud\b", "logged"),
    (r"\b(lies|lie) (in|on|at|under|beside|there|here|between|where|within)\b", "is, are"),
    (r"\bgo(es)? by\b", "follows, depends on"),
    (r"\bat hand\b", "available, current"),
    (r"\bcomes? to\b", "is"),
    (r"\bthere (is|are) none\b", "is missing"),
    (r"\b(is|are) no (?!longer|more|less)\w+\b(?!-)", "is not a"),
    (r"\bbeside\b", "next to, and"),
    (r"\bgo(es)? on (from|where|with|after)\b", "resumes"),
    (r"\bgone on from\b", "resumes"),
    (r"\bas many as (it|they|there)\b", "predicted, the number of"),
    (r"\ball there (is|are)\b", "all"),
    (r"\bin the place of\b", "instead of"),
    (r"\bwhere there (is|are)\b", "if there is"),
    (r"\bmend(s|ed|ing)?\b", "fix"),
    (r"\bmakes? (it|them) anew\b|\banew\b", "again"),
    (r"\bhand(s|ed)? (in|over)\b", "passes"),
    (r"\b(asks?|asked) for it\b", "needs"),
    (r"\bno counterpart\b", "the other table lacks it"),
    (r"\bnobody\b", "no one, or name the part"),
    (r"\bhas not got\b", "does not have"),
    (r"\bsave (that|where|for|two|one|COCO)\b", "except"),
    (r"\bwhat (ails|one|it|they|there) (has|have|is|are|takes|gives|wants|needs|makes)\b", "name the noun"),
]
#: The first word of a docstring in library code. Free relatives are not imperative sentences.
DOCSTRING_STARTS = re.compile(r"(What|Whose|Whether|How|When|Where|Which|Who|Of|As|In the place)\b")
SELF = {"tools/check_language.py", "CONTRIBUTING.md"}


def tracked_files() -> list[Path]:
    """Return the tracked and new files of the repository that hold text."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [ROOT / name for name in sorted(set(listed)) if Path(name).suffix in SUFFIXES and (ROOT / name).is_file()]


def find_phrases(text: str) -> list[tuple[int, str]]:
    """Return (line, finding) for every phrase of the list in a text."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if "language: ok" in line:
            continue
        for phrase, better in PHRASES:
            if match := re.search(phrase, line, re.IGNORECASE):
                found.append((number, f"'{match.group()}': write '{better}'"))
    return found


def check_python(text: str) -> list[tuple[int, str]]:
    """Return (line, finding) for docstrings that start with a free relative and for test names that are too long."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        line = getattr(node, "lineno", 1)
        docstring = ast.get_docstring(node) or ""
        if DOCSTRING_STARTS.match(docstring):
            found.append((line, f"a docstring starts with '{docstring.split()[0]}': name the noun"))
        name = getattr(node, "name", "")
        if name.startswith("test_") and len(name) > MAX_TEST_NAME:
            found.append((line, f"{name} has {len(name)} characters, at most {MAX_TEST_NAME} are allowed"))
    return found


def main(words: list[str]) -> int:
    """Check the files and print what was found."""
    count = 0
    for path in [Path(word).resolve() for word in words] or tracked_files():
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
        if name in SELF:
            continue
        text = path.read_text(encoding="utf-8")
        findings = find_phrases(text) + (check_python(text) if path.suffix == ".py" else [])
        for line, finding in sorted(findings):
            print(f"{name}:{line}: {finding}")
        count += len(findings)
    print(f"{count} findings" if count else "the language rules hold")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
