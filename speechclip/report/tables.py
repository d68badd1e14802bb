"""The table model of RESULTS.md and of the HTML pages: a table has rows, a row has cells, a cell has a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

ABSENT = "–"
OWN, QUOTED, CONTROL, MIXED = "own", "quoted", "control", "mixed"
_NUMBER = re.compile(r"[-+]?\d[\d.,e+-]*( ± \d[\d.e+-]*| \[[-+\d., ]+\])?")


@dataclass(frozen=True)
class Cell:
    """A number, or a text, and how to print it.

    Attributes:
        value: the number or the text. None prints a dash.
        digits: decimals to print.
        ci95: the two ends of the 95% interval.
        deviation: the sample standard deviation, if the value is a mean over seeds.
        signed: print a plus sign before positive numbers, as for differences.
    """

    value: float | str | None = None
    digits: int = 1
    ci95: tuple[float, float] | None = None
    deviation: float | None = None
    signed: bool = False

    @property
    def text(self) -> str:
        """The value as text. A number too small for its digits keeps one significant digit."""
        if self.value is None:
            return ABSENT
        if isinstance(self.value, str):
            return self.value
        small = 0 < abs(self.value) < 0.5 * 10**-self.digits
        text = f"{self.value:{self._sign}{'.1g' if small else f',.{self.digits}f'}}"
        return text if self.deviation is None else f"{text} ± {self.deviation:,.{self.digits}f}"

    @property
    def interval(self) -> str:
        """The interval as text, "" if the cell has none."""
        return f"[{', '.join(f'{end:{self._sign}.{self.digits}f}' for end in self.ci95)}]" if self.ci95 else ""

    @property
    def _sign(self) -> str:
        return "+" if self.signed else ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: one text, or one text for each of the table's name columns.
        cells: one cell for each column.
        kind: OWN for measured numbers, QUOTED for published ones, CONTROL for chance and controls, MIXED for both.
    """

    name: str | tuple[str, ...]
    cells: Sequence[Cell]
    kind: str = OWN


@dataclass
class Table:
    """A table.

    Attributes:
        title: the heading.
        note: a sentence that says what the table shows; "" for none.
        columns: the headings of the cells.
        rows: the rows.
        name_columns: the headings of the columns that name a row. A page has one without a heading.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: list[Row] = field(default_factory=list)
    name_columns: tuple[str, ...] = ("",)


def render_markdown(table: Table) -> str:
    """Render a table as a Markdown heading, the note, and rows with padded columns. Numbers are aligned right."""
    lines = [[*table.name_columns, *table.columns]]
    for row in table.rows:
        names = (row.name,) if isinstance(row.name, str) else row.name
        lines.append(
            [name or ABSENT for name in names] + [f"{cell.text} {cell.interval}".rstrip() for cell in row.cells]
        )
    columns = list(zip(*lines, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    numeric = [all(cell == ABSENT or _NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    text = [f"### {table.title}", "", *([table.note, ""] if table.note else [])]
    for line in (lines[0], rule, *lines[1:]):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def inline_code(text: str) -> str:
    """Return text as inline code that a Markdown table cell can hold."""
    line = " ".join(text.split()).replace("|", "\\|")
    return f"`` {line} ``" if "`" in line else f"`{line}`"
