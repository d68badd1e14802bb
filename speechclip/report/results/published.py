"""The tables of Shih et al. 2022: quoted rows, and below each the row that this project measured.

Quoted rows are marked. A row that was not measured names its command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from speechclip.report.tables import QUOTED as QUOTED_ROW
from speechclip.report.tables import Cell, Row, Table

QUOTED = "quoted: Shih et al. 2022"
QUOTED_OTHER = "quoted: Peng and Harwath 2022, in Shih et al. 2022"
QUOTED_OMNI = "quoted: mteb results, 2026, an omni-modal model; not checked here"
RELEASED = "published"  # the tag of a converted checkpoint's rows
INTRODUCTION = """\
The tables of Shih et al. 2022, in percent. Rows marked *quoted* are published numbers. They were not measured here. The
other rows come from the tables above. If a row was not measured, it names the command that measures it.

The published chance level is that of one caption per image, or of any caption of the image, as the computed rows show.
So the zero-shot rows of this project use any caption of the image. The tables above also have the own caption. Keyword
hit rates are given as the published code counts them (reference) and as the paper describes them (clean).

Model sizes are of the published settings in millions of parameters, from the cascaded to the parallel head. The
published totals also include the pretraining parts of HuBERT and the reduced subword table. The 6.1 M of Large is a
cascaded head with a keyword projection of two layers."""
FAST_VGS = "fast_vgs"
CUTOFFS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Line:
    """One line of a published table.

    Attributes:
        name: the published name.
        numbers: the quoted numbers, one for each column, None for one that is not known; empty if none is published.
        source: where the numbers come from.
        own: (model, head, tag) of this project's run that is shown below; None for none.
        chance_of: number of images and captions whose chance level is shown below; None for none.
    """

    name: str
    numbers: tuple[float | None, ...] = ()
    source: str = QUOTED
    own: tuple[str, str, str] | None = None
    chance_of: tuple[int, int] | None = None


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        recipe: name of the recipe's folder.
        title: the heading.
        columns: the columns with numbers.
        own_table: title of this project's table with comparable numbers.
        lines: the published lines.
        also: title of this project's table with another count of the same score; "" for none.
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
#: The names that tables give to both stages of a fast_vgs head with the published regions.
_FAST_VGS_CO = ("base", "FaST-VGS (BUTD-36)", "")
_FAST_VGS_CTF = ("base", "FaST-VGS (BUTD-36) (coarse to fine, K=100)", "")
_KEYWORDS = (*(f"kw{number}" for number in range(1, 9)), "avg")
TABLES = (
    Published(
        "spokencoco",
        "Published: speech-image retrieval",
        _directions("S→I", "I→S"),
        "Speech and images",
        (
            Line("FaST-VGS_CO", (31.8, 62.5, 75.0, 42.5, 73.7, 84.9), QUOTED_OTHER, own=_FAST_VGS_CO),
            Line("FaST-VGS_CTF", (35.9, 66.3, 77.9, 48.8, 78.2, 87.0), QUOTED_OTHER, own=_FAST_VGS_CTF),
            Line("SpeechCLIP Parallel Large", (35.8, 66.5, 78.0, 50.6, 80.9, 89.1), own=_PARALLEL),
            Line("SpeechCLIP Cascaded Large", (6.4, 20.7, 31.0, 9.6, 27.7, 39.7), own=_CASCADED),
            Line("jina-v5-omni-nano", (None, None, 33.9, None, None, None), QUOTED_OMNI),
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
            Line("FaST-VGS_CO", own=_FAST_VGS_CO),
            Line("FaST-VGS_CTF", own=_FAST_VGS_CTF),
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
_COUNTED = "this project, counted: `tools/measure/count_parameters.py`"
#: Model, and by origin trained and total parameters in millions, of the cascaded and of the parallel head.
_SIZES = {
    "base": (("Base", QUOTED, "2.8 – 7.5", "252 – 257"), ("Base", _COUNTED, "2.77 – 7.48", "248.4 – 253.1")),
    "large": (("Large", QUOTED, "6.1 – 13.4", "765 – 772"), ("Large", _COUNTED, "5.01 – 13.39", "748.1 – 756.4")),
}  # fmt: skip
_SIZES_OF = {"flickr8k": ("base", "large"), "spokencoco": ("large",)}  # as they were published


def published_tables(recipe: str, own: Mapping[str, Table]) -> list[Table]:
    """Return the published tables of a recipe, with this project's row below each quoted row.

    Args:
        recipe: name of the recipe's folder.
        own: this project's tables by title.
    """
    names = ("model", "origin")
    tables = [
        Table(table.title, "", table.columns, _rows(table, own), names) for table in TABLES if table.recipe == recipe
    ]
    if recipe in _SIZES_OF:
        sizes = [row for model in _SIZES_OF[recipe] for row in _SIZES[model]]
        rows = [Row(row[:2], [Cell(text) for text in row[2:]]) for row in sizes]
        tables.append(Table(SIZES, "", ("trained", "total"), rows, names))
    return tables


def _rows(table: Published, own: Mapping[str, Table]) -> list[Row]:
    known = [number for line in table.lines for number in line.numbers if number is not None]
    digits = 2 if any(round(number, 1) != number for number in known) else 1
    rows = []
    for line in table.lines:
        if line.numbers:
            numbers = [Cell(number, digits) for number in line.numbers]
            rows.append(Row((line.name, line.source), numbers, QUOTED_ROW))
        if line.chance_of is not None:
            rows += [Row((line.name, origin), cells) for origin, cells in _chance_rows(*line.chance_of, table.columns)]
        if line.own is not None:
            rows += [Row((line.name, origin), cells) for origin, cells in _own_rows(line.own, table, own)]
    return rows


def _chance_rows(images: int, captions: int, columns: Sequence[str]) -> Iterator[tuple[str, list[Cell]]]:
    """Yield the chance level in both protocols, for captions that are spread evenly over the images."""
    import numpy as np

    from speechclip.eval.retrieval import chance

    number = np.arange(captions)
    for protocol, groups in (("any caption of the image", number % images), ("own caption", number)):
        level = chance(groups, groups)
        origin = f"computed: {protocol}, {captions:,} captions of {images:,} images"
        yield origin, [Cell(level[column.split()[1]], 3) for column in columns]


def _own_rows(
    run: tuple[str, str, str], table: Published, own: Mapping[str, Table]
) -> Iterator[tuple[str, list[Cell]]]:
    """Yield this project's numbers for a line: the mean over seeds, else the first seed, else the command to run.

    The numbers of the authors' checkpoint follow if it was scored here. Of several commits the last is used.
    """
    model, head, tag = run
    found = False
    theirs = []
    for title in filter(None, (table.own_table, table.also)):
        count = f", {title.rpartition(', ')[2]}" if table.also else ""
        row = _last_row(own.get(title), run)
        if row is not None:
            seed, cells = row
            found = True
            yield f"this project, {seed if seed.startswith('mean') else f'seed {seed}'}{count}", _cells(cells, table)
        row = None if tag else _last_row(own.get(title), (model, head, RELEASED))
        if row is not None:
            theirs.append((f"the authors' checkpoint, scored here{count}", _cells(row[1], table)))
    if not found:
        supervised = " --supervision text" if tag == "supervised" else ""
        is_fast_vgs = head in (_FAST_VGS_CO[1], _FAST_VGS_CTF[1])
        name, regions = (FAST_VGS, " --region_files FILES") if is_fast_vgs else (head, "")
        command = f"`./run.sh --model {model} --head {name}{regions}{supervised}`"
        yield f"not run: {command}", [Cell() for _ in table.columns]
    yield from theirs


def _last_row(table: Table | None, run: tuple[str, str, str]) -> tuple[str, dict[str, Cell]] | None:
    """Return seed and cells of a run: of the last commit, its mean over seeds or else its first seed."""
    if table is None:
        return None
    named = [(dict(zip(table.name_columns, row.name, strict=True)), row) for row in table.rows]
    found = [(names, row) for names, row in named if (names["model"], names["head"], names.get("tag", "")) == run]
    found = [item for item in found if item[0].get("commit") == found[-1][0].get("commit")]
    chosen = [item for item in found if item[0]["seed"].startswith("mean of")] or found
    if not chosen:
        return None
    names, row = chosen[0]
    return names["seed"], dict(zip(table.columns, row.cells, strict=True))


def _cells(cells: Mapping[str, Cell], table: Published) -> list[Cell]:
    return [cells.get(name, Cell()) for name in table.columns]
