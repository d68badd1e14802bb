#!/usr/bin/env python3
"""Write the generated parts of README.md: the output of its Python example and its table of results.

    tools/readme.py            write README.md
    tools/readme.py --check    print the difference and exit with status 1 if README.md is out of date

The table comes from egs/mini/results.jsonl and egs/flickr8k/results.jsonl.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
#: (file, tag of its runs, text in the table)
CORPORA = (
    ("egs/mini/results.jsonl", "", "**mini**: {images} rendered scenes, synthetic speech"),
    (
        "egs/flickr8k/results.jsonl",
        "both_distilled",
        "**slice of Flickr8k**: {images} photographs, synthetic speech, encoder of Whisper tiny.en",
    ),
)
HEADS = ("parallel", "hybrid", "hybrid_plus", "cascaded", "cascaded_plus")
HEADER = (
    "| test data | head | seeds | speech → image R@1 | R@10 | image → speech R@1 | R@10 | keyword hits |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|\n"
)

Row = dict[str, Any]


def last_group(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the same commits and settings as the last one, one per seed."""
    if not rows:
        return []
    key = [(row["commit"], row["trained_at"], row["settings"]) for row in rows]
    return list({row["seed"]: row for row, group in zip(rows, key, strict=True) if group == key[-1]}.values())


def mean(rows: Sequence[Row], *path: str) -> str:
    """Return the mean of a score over seeds, with one decimal."""
    values = []
    for row in rows:
        value: Any = row["scores"]
        for name in path:
            value = value[name]
        values.append(float(value))
    return f"{statistics.fmean(values):.1f}"


def recalls(rows: Sequence[Row], *path: str) -> list[str]:
    """Return R@1 and R@10 of both directions."""
    return [mean(rows, *path, way, name) for way in ("speech->image", "image->speech") for name in ("R@1", "R@10")]


def corpus_rows(path: Path, tag: str, text: str) -> list[list[str]]:
    """Return the rows of the table for one corpus.

    Raises:
        SystemExit: the file is missing or has no runs.
    """
    if not path.is_file():
        raise SystemExit(f"error: {path}: is missing")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    table: list[list[str]] = []
    shuffled: list[str] = []
    retrieval: list[Row] = []
    for head in HEADS:
        mine = [row for row in rows if (row["head"], row["tag"]) == (head, tag)]
        found = last_group([row for row in mine if row["step"] == "retrieval"])
        if not found:
            continue
        retrieval = retrieval or found
        keywords = last_group([row for row in mine if row["step"] == "keywords"])
        hits = mean(keywords, "content_top1", "avg") if keywords else "–"
        if keywords:
            shuffled.append(mean(keywords, "shuffled_speech", "content_top1", "avg"))
        table.append(["", head, str(len(found)), *recalls(found), hits])
    if not retrieval:
        raise SystemExit(f"error: {path}: no scores of the heads {' '.join(HEADS)}")
    topline = [mean(retrieval, "text->image", name) for name in ("R@1", "R@10")]
    table.append(["", "*CLIP with written captions*", "", *topline, "", "", ""])
    low, high = (min(shuffled, key=float), max(shuffled, key=float)) if shuffled else ("", "")
    table.append(["", "*chance*", "", *recalls(retrieval, "random"), f"{low} to {high}" if shuffled else ""])
    table[0][0] = text.format(images=retrieval[0]["scores"]["speech->image"]["n_gallery"])
    return table


def results_table() -> str:
    """Return the table of results as Markdown."""
    rows = [row for name, tag, text in CORPORA for row in corpus_rows(ROOT / name, tag, text)]
    return HEADER + "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def example_output() -> str:
    """Run the first Python block of README.md and return its output as a code block."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", blocks[0]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"error: README.md: its Python example fails: {ended.stderr.strip()}")
    return f"```text\n{ended.stdout}```\n"


def replace_part(text: str, name: str, content: str) -> str:
    """Return the text with new content between the markers of a part."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    return text[: text.index(begin) + len(begin)] + content + text[text.index(end) :]


def main() -> int:
    """Parse the options, then write or check README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = replace_part(replace_part(old, "output", example_output()), "results", results_table())
    if not args.check:
        README.write_text(new, encoding="utf-8")
        return 0
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "README.md", "up to date"))
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
