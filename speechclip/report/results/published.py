"""The tables of Shih et al. 2022 with this project's own rows beside the quoted ones.

Quoted rows say so and are never mixed with measured ones. A row that nothing has been run for names its command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from speechclip.report.results.markdown import Table

Row = Mapping[str, str]

QUOTED = "quoted: Shih et al. 2022"
QUOTED_OTHER = "quoted: Peng and Harwath 2022, in Shih et al. 2022"
BLOCK = "published"
RELEASED = "published"  # the tag of a converted checkpoint's rows
INTRODUCTION = """\
The tables of Shih et al. 2022, percent. Rows marked *quoted* are published numbers and were not measured here; the
others come from the tables above, and where nothing has been run yet the row names the command that fills it. The
published chance level is that of one caption an image or any caption of it, as the computed rows below it show, so the
zero-shot rows of this project stand for any caption of the image; those of the own caption are in the tables above.
Keyword hit rates are given as the published code counts them (reference) and as the paper describes them (clean). Model
sizes are of the published settings, millions of parameters, from the cascaded to the parallel head; the published
totals hold HuBERT's pretraining parts and the reduced subword table besides, the 6.1 M of Large is a cascaded head with
a keyword projection of two layers."""
CUTOFFS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Line:
    """One line of a published table.

    name: as published. numbers: quoted, in the columns' order; empty where none is published. source: of the numbers.
    own: (model, head, tag) of this project's run that stands beside it; None where there is none. chance_of: images and
    captions whose chance level stands beside it.
    """

    name: str
    numbers: tuple[float, ...] = ()
    source: str = QUOTED
    own: tuple[str, str, str] | None = None
    chance_of: tuple[int, int] | None = None


@dataclass(frozen=True)
class Published:
    """A published table: its recipe, its columns, where its own numbers are found, its lines.

    own_table: title of this project's table with the numbers that compare. also: of one that counts otherwise.
    """

    recipe: str
    title: str
    columns: tuple[str, ...]
    own_table: str
    lines: tuple[Line, ...]
    also: str = ""


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
            Line("Random", (0.02, 0.10, 0.20, 0.02, 0.10, 0.20), chance_of=(5_000, 25_031)),
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
        also="Keyword hit rate, clean",
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
        also="Keyword hit rate, clean",
    ),
)
SIZES = "Published: model sizes"
_COUNTED = "this project, counted: `tools/count_parameters.py`"
#: Model, and by origin trained and total parameters in millions, of the cascaded and of the parallel head.
_SIZES = {
    "base": (("Base", QUOTED, "2.8 – 7.5", "252 – 257"), ("Base", _COUNTED, "2.77 – 7.48", "248.4 – 253.1")),
    "large": (("Large", QUOTED, "6.1 – 13.4", "765 – 772"), ("Large", _COUNTED, "5.01 – 13.39", "748.1 – 756.4")),
}  # fmt: skip
_SIZES_OF = {"flickr8k": ("base", "large"), "spokencoco": ("large",)}  # as they were published


def published_tables(recipe: str, own: Mapping[str, Sequence[Row]]) -> list[Table]:
    """The published tables of a recipe, each quoted row with this project's own below it.

    Args:
        recipe: name of the recipe's folder. own: this project's tables by their titles.
    """
    tables = [
        Table(table.title, ("model", "origin", *table.columns), tuple(_rows(table, own)))
        for table in TABLES
        if table.recipe == recipe
    ]
    if recipe in _SIZES_OF:
        columns = ("model", "origin", "trained", "total")
        rows = (dict(zip(columns, row, strict=True)) for model in _SIZES_OF[recipe] for row in _SIZES[model])
        tables.append(Table(SIZES, columns, tuple(rows)))
    return tables


def _rows(table: Published, own: Mapping[str, Sequence[Row]]) -> list[dict[str, str]]:
    digits = 2 if any(round(number, 1) != number for line in table.lines for number in line.numbers) else 1
    rows = []
    for line in table.lines:
        if line.numbers:
            numbers = (f"{number:.{digits}f}" for number in line.numbers)
            rows.append({"model": line.name, "origin": line.source, **dict(zip(table.columns, numbers, strict=True))})
        if line.chance_of is not None:
            rows += ({"model": line.name, **row} for row in _chance_rows(*line.chance_of, table.columns))
        if line.own is not None:
            rows += ({"model": line.name, **row} for row in _own_rows(line.own, table, own))
    return rows


def _chance_rows(images: int, captions: int, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Chance among so many captions of so many images, spread evenly, in both protocols and the same both ways."""
    import numpy as np

    from speechclip.eval.retrieval import chance

    number = np.arange(captions)
    for protocol, groups in (("any caption of the image", number % images), ("own caption", number)):
        level = chance(groups, groups)
        numbers = {column: f"{level[column.split()[1]]:.3f}" for column in columns}
        yield {"origin": f"computed: {protocol}, {captions:,} of {images:,} images", **numbers}


def _own_rows(run: tuple[str, str, str], table: Published, own: Mapping[str, Sequence[Row]]) -> list[dict[str, str]]:
    """This project's numbers for a line: the mean over seeds, else the first seed's, else the command; and those of the
    authors' checkpoint, where it has been scored here.
    """
    model, head, tag = run
    mine: list[dict[str, str]] = []
    theirs: list[dict[str, str]] = []
    for title in filter(None, (table.own_table, table.also)):
        how = f", {title.rpartition(', ')[2]}" if table.also else ""
        named = [((row.get("model"), row.get("head"), row.get("tag", "")), row) for row in own.get(title, ())]
        found = [row for name, row in named if name == run]
        mean = [row for row in found if row.get("seed", "").startswith("mean of")]
        for row in (mean or found)[:1]:
            seed = row.get("seed", "")
            mine.append({"origin": f"this project, {seed if mean else f'seed {seed}'}{how}", **_numbers(row, table)})
        if not tag:
            origin = {"origin": f"the authors' checkpoint, scored here{how}"}
            theirs += (origin | _numbers(row, table) for name, row in named if name == (model, head, RELEASED))
    if not mine:
        supervised = " --supervision text" if tag == "supervised" else ""
        mine = [{"origin": f"not run: `./run.sh --model {model} --head {head}{supervised}`"}]
    return mine + theirs


def _numbers(row: Row, table: Published) -> dict[str, str]:
    return {name: row[name] for name in table.columns if name in row}
