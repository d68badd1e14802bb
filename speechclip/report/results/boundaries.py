"""The table of keyword times scored as word boundaries (see speechclip/eval/segmentation.py)."""

from __future__ import annotations

from collections.abc import Iterator

from speechclip.report.results.keyword_tables import EVENLY, named
from speechclip.report.runs import Run

TITLE = "Keyword times as word boundaries"
INTRODUCTION = """\
Keyword times as word boundaries: segments of heads with integrate-and-fire, spans that hold half of the attention of
the others, all starts and ends between the first word's start and the last one's end; beside each as many boundaries
evenly spaced."""
COLUMNS = {
    "precision": "precision", "recall": "recall", "F1": "f1", "over-segmentation": "over_segmentation",
    "R-value": "r_value",
}  # fmt: skip


def boundary_rows(run: Run) -> Iterator[dict[str, str]]:
    """The row of a run whose corpus has word alignments, and of as many boundaries evenly spaced."""
    if not run.keywords or "segmentation" not in run.keywords.content:
        return
    for kind, path in (("", ()), (EVENLY, ("uniform",))):
        values = {title: f"{run.keywords.number('segmentation', *path, key):.1f}" for title, key in COLUMNS.items()}
        yield {**named(run, kind), **values}
