"""One table of all heads: size, training time, recall with intervals, and what their keywords are like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speechclip.report.runs import Run, Scores

Row = dict[str, str]

TITLE = "Heads side by side"
INTRODUCTION = """\
Trained parameters and training time of each run; recall in percent. keywords: how many an utterance has; distinct:
percent of them that repeat no other of the utterance; content_top1: see below, percent of all keywords; boundaries: F1
and R-value of the keywords' times against word boundaries (segments of heads with integrate-and-fire, attention spans
of the others; the table of word boundaries has the rest). Brackets: 95% intervals over images. A hybrid head has two
branches: its own row is the parallel one."""

SIZE, TIME = "parameters", "training s"
RECALLS = (
    ("S→I R@1", "speech->image", "R@1"), ("S→I R@10", "speech->image", "R@10"),
    ("I→S R@1", "image->speech", "R@1"), ("I→S R@10", "image->speech", "R@10"),
)  # fmt: skip
KEYWORDS = ("keywords", "distinct", "content_top1", "boundary F1", "R-value")
COLUMNS = (SIZE, TIME, *(name for name, _, _ in RECALLS), *KEYWORDS)
_CELL = re.compile(r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)(?: \[.*\])?")


def value_of(cell: str) -> float:
    """The number in a cell, without its interval and thousands' commas. Raises ValueError where there is none."""
    found = _CELL.fullmatch(cell)
    if not found:
        raise ValueError(cell)
    return float(found.group(1).replace(",", ""))


def branch_head(head: str, branch: str) -> str:
    """How a table calls a head's further branch."""
    return f"{head} ({branch} branch)"


def branch_scores(run: Run) -> Iterator[tuple[str, Scores]]:
    """The further branches of a run: the head's name in tables, and its retrieval scores."""
    content = run.retrieval.content.get("branches")
    for branch, scores in content.items() if isinstance(content, Mapping) else ():
        yield branch_head(run.head, str(branch)), Scores(run.retrieval.path, scores)


def overview_rows(run: Run) -> Iterator[Row]:
    """The rows of a run: its own, with all there is, and the recall of each further branch."""
    name = {"model": run.model, "head": run.head, "tag": run.tag, "seed": run.seed_text}
    named = {key: value for key, value in name.items() if value}
    row = {**named, **_recalls(run.retrieval)}
    training: Mapping[str, Any] = run.training.content if run.training else {}
    for column, key in ((SIZE, "trained"), (TIME, "train_seconds")):
        if isinstance(training.get(key), int | float):
            row[column] = f"{training[key]:,.0f}"
    yield {**row, **(_keywords(run.keywords) if run.keywords else {})}
    for head, scores in branch_scores(run):
        yield {**named, "head": head, **_recalls(scores)}


def _recalls(scores: Scores) -> Row:
    row = {}
    for column, direction, cutoff in RECALLS:
        row[column] = _cell(scores.number(direction, cutoff), scores.get(direction).get("ci95", {}).get(cutoff))
    return row


def _keywords(scores: Scores) -> Row:
    content = scores.content
    intervals = content.get("ci95", {}).get("content_top1", {})
    row = {"content_top1": _cell(scores.number("content_top1", "avg"), intervals.get("avg"))}
    if "repetition" in content:
        row["keywords"] = f"{scores.number('repetition', 'keywords'):.1f}"
        # "repetition" counts what the section "distinct" does where only special tokens are left out
        repeated = content.get("distinct", {}).get("all", {}).get("ci95", {}).get("duplicates")
        distinct = repeated and [100 - repeated[1], 100 - repeated[0]]
        row["distinct"] = _cell(100 - scores.number("repetition", "duplicates"), distinct)
    if "segmentation" in content:
        intervals = content["segmentation"].get("ci95", {})
        for column, key in (("boundary F1", "f1"), ("R-value", "r_value")):
            row[column] = _cell(scores.number("segmentation", key), intervals.get(key))
    return row


def _cell(value: float, interval: Sequence[float] | None) -> str:
    """A number with its interval, where it has one."""
    return f"{value:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")
