"""One table of all heads: size, training time, recall with intervals, and scores of the keywords."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speechclip.report.results.assemble import Entry, assemble, entry, number
from speechclip.report.results.retrieval_tables import branch_scores, coarse_head, second_stage_scores
from speechclip.report.results.rows import KEYWORDS, RETRIEVAL, TRAIN, ResultRow, related
from speechclip.report.runs import Scores
from speechclip.report.tables import Cell, Table

TITLE = "Heads side by side"
INTRODUCTION = """\
Trained parameters and training time of each run, and recall in percent. keywords: keywords per utterance. distinct:
percentage of keywords that differ from the other keywords of the utterance. content_top1: see the keyword tables,
percentage of all keywords. boundary F1 and R-value: keyword times against word boundaries. The times are segments for
heads with integrate-and-fire, and attention spans for the others. Brackets: 95% intervals over images. A hybrid head
has two branches. Its own row is the parallel one."""

SIZE, TIME = "parameters", "training s"
RECALLS = (
    ("S→I R@1", "speech->image", "R@1"), ("S→I R@10", "speech->image", "R@10"),
    ("I→S R@1", "image->speech", "R@1"), ("I→S R@10", "image->speech", "R@10"),
)  # fmt: skip
COLUMNS = (
    SIZE, TIME, *(name for name, _, _ in RECALLS), "keywords", "distinct", "content_top1", "boundary F1", "R-value",
)  # fmt: skip


def heads_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Return the table, if there is a retrieval row."""
    entries = [item for row in rows if row.step == RETRIEVAL for item in _entries(row, rows)]
    columns = [column for column in COLUMNS if any(column in item.cells for item in entries)]
    return [assemble(TITLE, "", columns, entries)] if entries else []


def _entries(row: ResultRow, rows: Sequence[ResultRow]) -> Iterator[Entry]:
    cells = _recalls(row.scores)
    training, keywords = related(row, TRAIN, rows), related(row, KEYWORDS, rows)
    for column, key in ((SIZE, "trained"), (TIME, "train_seconds")):
        value = training.scores.content.get(key) if training else None
        if isinstance(value, int | float):
            cells[column] = Cell(value, 0)
    yield entry(row, {**cells, **(_keywords(keywords.scores) if keywords else {})}, coarse_head(row.head, row.scores))
    for head, scores in [*branch_scores(row.head, row.scores), *second_stage_scores(row.head, row.scores)]:
        yield entry(row, _recalls(scores), head)


def _recalls(scores: Scores) -> dict[str, Cell]:
    return {
        column: number(scores.number(direction, cutoff), scores.get(direction).get("ci95", {}).get(cutoff))
        for column, direction, cutoff in RECALLS
    }


def _keywords(scores: Scores) -> dict[str, Cell]:
    content = scores.content
    intervals = content.get("ci95", {}).get("content_top1", {})
    cells = {"content_top1": number(scores.number("content_top1", "avg"), intervals.get("avg"))}
    if "repetition" in content:
        cells["keywords"] = number(scores.number("repetition", "keywords"))
        # "repetition" counts what the section "distinct" counts if only special tokens are left out
        repeated = content.get("distinct", {}).get("all", {}).get("ci95", {}).get("duplicates")
        distinct = [100 - repeated[1], 100 - repeated[0]] if repeated else None
        cells["distinct"] = number(100 - scores.number("repetition", "duplicates"), distinct)
    if "segmentation" in content:
        intervals = content["segmentation"].get("ci95", {})
        for column, key in (("boundary F1", "f1"), ("R-value", "r_value")):
            cells[column] = number(scores.number("segmentation", key), intervals.get(key))
    return cells
