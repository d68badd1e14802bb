"""The tables of Shih et al. 2022 with this project's own rows beside the quoted ones.

Quoted rows say so and are never mixed with measured ones. A row that nothing has been run for names its command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from speechclip.report.markdown import Table

Row = Mapping[str, str]

QUOTED = "quoted: Shih et al. 2022"
QUOTED_OTHER = "quoted: Peng and Harwath 2022, in Shih et al. 2022"
BLOCK = "published"
RELEASED = "published"  # the tag of a converted checkpoint's rows
INTRODUCTION = """\
The tables of Shih et al. 2022, percent. Rows marked *quoted* are published numbers and were not measured here; the
others come from the tables above, and where nothing has been run yet the row names the command that fills it. The
published chance of 0.02/0.10/0.20 is that of one caption an image or any caption of it; an utterance's own caption
among 25,031 is found by chance in 0.004% (R@1), so the zero-shot rows of this project stand for any caption of the
image."""
CUTOFFS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Line:
    """One line of a published table.

    name: as published. numbers: quoted, in the columns' order; empty where none is published. source: of the numbers.
    own: (model, head, tag) of this project's run that stands beside it; None where there is none.
    """

    name: str
    numbers: tuple[float, ...] = ()
    source: str = QUOTED
    own: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Published:
    """A published table: its recipe, its columns, where its own numbers are found, its lines."""

    recipe: str
    title: str
    columns: tuple[str, ...]
    own_table: str
    lines: tuple[Line, ...]


def _directions(*shorts: str) -> tuple[str, ...]:
    return tuple(f"{short} {cutoff}" for short in shorts for cutoff in CUTOFFS)


_PARALLEL, _CASCADED, _SUPERVISED = (
    ("large", head, tag) for head, tag in (("parallel", ""), ("cascaded", ""), ("parallel", "supervised"))
)
_KEYWORDS = (*(f"kw{number}" for number in range(1, 9)), "avg")
TABLES = (
    Published(
        "spokencoco",
        "Published: speech-image retrieval",
        _directions("S→I", "I→S"),
        "Speech and images",
        (
            Line("FaST-VGS_CO", (31.8, 62.5, 75.0, 42.5, 73.7, 84.9), QUOTED_OTHER),
            Line("FaST-VGS_CTF", (35.9, 66.3, 77.9, 48.8, 78.2, 87.0), QUOTED_OTHER),
            Line("SpeechCLIP Parallel Large", (35.8, 66.5, 78.0, 50.6, 80.9, 89.1), own=_PARALLEL),
            Line("SpeechCLIP Cascaded Large", (6.4, 20.7, 31.0, 9.6, 27.7, 39.7), own=_CASCADED),
        ),
    ),
    Published(
        "spokencoco",
        "Published: zero-shot speech-text retrieval",
        _directions("S→T", "T→S"),
        "Speech and captions, any caption of the image",
        (
            Line("Random", (0.02, 0.10, 0.20, 0.02, 0.10, 0.20)),
            Line("Parallel Large", (60.32, 81.81, 88.18, 65.45, 85.82, 91.27), own=_PARALLEL),
            Line("Parallel Large (Sup.)", (95.02, 99.46, 99.78, 95.35, 99.68, 99.93), own=_SUPERVISED),
        ),
    ),
    Published(
        "spokencoco",
        "Published: keyword hit rates, COCO",
        _KEYWORDS,
        "Keyword hit rate, reference",
        (Line("Large (COCO)", (27.5, 22.4, 35.8, 61.0, 21.6, 54.2, 60.1, 22.9, 38.2), own=_CASCADED),),
    ),
    Published(
        "flickr8k",
        "Published: speech-image retrieval, a re-run of the released checkpoint",
        _directions("S→I", "I→S"),
        "Speech and images",
        (
            Line(
                "Parallel Base",
                (26.74, 56.94, 69.84, 41.40, 73.60, 83.90),
                "quoted: a published re-run of the released checkpoint",
                ("base", "parallel", ""),
            ),
            Line("Cascaded Base", own=("base", "cascaded", "")),
            Line("Parallel Large", own=_PARALLEL),
            Line("Cascaded Large", own=_CASCADED),
        ),
    ),
    Published(
        "flickr8k",
        "Published: keyword hit rates, Flickr8k",
        _KEYWORDS,
        "Keyword hit rate, reference",
        (
            Line("Base (Flickr)", (57.0, 25.6, 20.2, 5.0, 20.0, 26.5, 10.5, 16.6, 22.7), own=("base", "cascaded", "")),
            Line("Large (Flickr)", (56.5, 19.6, 20.5, 37.5, 21.7, 34.6, 26.4, 44.7, 32.7), own=_CASCADED),
        ),
    ),
)


def published_tables(recipe: str, own: Mapping[str, Sequence[Row]]) -> list[Table]:
    """The published tables of a recipe, each quoted row with this project's own below it.

    Args:
        recipe: name of the recipe's folder. own: this project's tables by their titles.
    """
    return [
        Table(table.title, ("model", "origin", *table.columns), tuple(_rows(table, own.get(table.own_table, ()))))
        for table in TABLES
        if table.recipe == recipe
    ]


def _rows(table: Published, own: Sequence[Row]) -> list[dict[str, str]]:
    digits = 2 if any(round(number, 1) != number for line in table.lines for number in line.numbers) else 1
    rows = []
    for line in table.lines:
        if line.numbers:
            numbers = (f"{number:.{digits}f}" for number in line.numbers)
            rows.append({"model": line.name, "origin": line.source, **dict(zip(table.columns, numbers, strict=True))})
        if line.own is not None:
            rows += ({"model": line.name, **row} for row in _own_rows(line.own, table.columns, own))
    return rows


def _own_rows(run: tuple[str, str, str], columns: Sequence[str], own: Sequence[Row]) -> Iterator[dict[str, str]]:
    """This project's numbers for a line: the mean over seeds, else the first seed's, else the command; and those of the
    authors' checkpoint, where it has been scored here.
    """
    model, head, tag = run
    found = [row for row in own if (row.get("model"), row.get("head"), row.get("tag", "")) == run]
    mean = [row for row in found if row.get("seed", "").startswith("mean of")]
    for row in (mean or found)[:1]:
        seed = row.get("seed", "")
        yield {"origin": f"this project, {seed if mean else f'seed {seed}'}", **_numbers(row, columns)}
    if not found:
        supervised = " --supervision text" if tag == "supervised" else ""
        yield {"origin": f"not run: `./run.sh --model {model} --head {head}{supervised}`"}
    for row in own if not tag else ():
        if (row.get("model"), row.get("head"), row.get("tag")) == (model, head, RELEASED):
            yield {"origin": "the authors' checkpoint, scored here", **_numbers(row, columns)}


def _numbers(row: Row, columns: Sequence[str]) -> dict[str, str]:
    return {name: row[name] for name in columns if name in row}
