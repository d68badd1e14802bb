"""The table of keyword times scored as word boundaries (see speechclip/eval/segmentation.py)."""

from __future__ import annotations

from collections.abc import Iterator

from speechclip.report.runs import Run

TITLE = "Keyword times as word boundaries"
EVEN = "*evenly spaced*"
COLUMNS = {
    "precision": "precision", "recall": "recall", "F1": "f1", "over-segmentation": "over_segmentation",
    "R-value": "r_value",
}  # fmt: skip


def boundary_rows(run: Run) -> Iterator[dict[str, str]]:
    """The row of a run whose corpus has word alignments, and of as many boundaries evenly spaced."""
    if not run.keywords or "segmentation" not in run.keywords.content:
        return
    scores, named = run.keywords, {"model": run.model, "tag": run.tag, "seed": str(run.seed)}
    for head, path in ((run.head, ()), (f"{EVEN} ({run.head})", ("uniform",))):
        values = {title: f"{scores.number('segmentation', *path, key):.1f}" for title, key in COLUMNS.items()}
        yield {key: value for key, value in {**named, "head": head}.items() if value} | values
