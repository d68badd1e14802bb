"""Markdown tables between markers in a file that people edit too. The tables are read back and merged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechclip.common.errors import UserError

ABSENT = "–"
_CELL_BORDER = re.compile(r"(?<!\\)\|")
_NUMBER = re.compile(r"[-+]?\d[\d.,e+-]*( ± \d[\d.e+-]*| \[[-\d., ]+\])?")


@dataclass(frozen=True)
class Table:
    """A heading, the column names, and rows that map a column to its text. A row without a column prints a dash."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]

    def render(self) -> str:
        """Return the heading and the table with padded columns. Numbers are aligned right."""
        lines = [list(self.columns), *([row.get(name) or ABSENT for name in self.columns] for row in self.rows)]
        right = [
            all(_NUMBER.fullmatch(line[i]) or line[i] == ABSENT for line in lines[1:]) for i in range(len(lines[0]))
        ]
        width = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
        rule = ["-" * (w - 1) + ":" if to_right else "-" * w for w, to_right in zip(width, right, strict=True)]
        text = []
        for line in (lines[0], rule, *lines[1:]):
            padded = [
                cell.rjust(w) if to_right else cell.ljust(w)
                for cell, w, to_right in zip(line, width, right, strict=True)
            ]
            text.append(f"| {' | '.join(padded)} |")
        return f"### {self.title}\n\n" + "\n".join(text) + "\n"


def parse_tables(block: str, source: str, first_line: int = 1) -> dict[str, Table]:
    """Return the tables of a block by their heading.

    Raises:
        UserError: a row does not fit its header. The error names the line.
    """
    tables: dict[str, Table] = {}
    title, columns, rows = "", (), []  # type: str, tuple[str, ...], list[dict[str, str]]
    for number, line in enumerate(block.splitlines(), start=first_line):
        if line.startswith("### "):
            title, columns, rows = line[4:].strip(), (), []
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in _CELL_BORDER.split(line.strip())[1:-1]]
        if not columns:
            columns = tuple(cells)
        elif len(cells) != len(columns):
            raise UserError(f"{source}: line {number}: {len(cells)} cells, the header has {len(columns)}. Fix the row.")
        elif any(cell.strip("-:") for cell in cells):
            rows.append({name: cell for name, cell in zip(columns, cells, strict=True) if cell != ABSENT})
        tables[title] = Table(title, columns, tuple(rows))
    return tables


def read_block(text: str, name: str, source: str) -> dict[str, Table]:
    """Return the tables between the markers of a name. Without these markers the result is empty."""
    span = _find(text, name, source)
    if span is None:
        return {}
    return parse_tables(text[span[0] : span[1]], source, first_line=1 + text.count("\n", 0, span[0]))


def write_block(text: str, name: str, source: str, introduction: str, tables: Sequence[Table], before: str) -> str:
    """Return the text with the block of that name replaced.

    A new block with rows is inserted before the block called ``before``, or at the end.
    """
    filled = [table for table in tables if table.rows]
    span = _find(text, name, source)
    if span is None and not filled:
        return text
    block = "\n".join([f"\n{introduction}\n", *(table.render() for table in filled)])
    if span is None:
        place = text.find(_marker("begin", before))
        head, tail = (text, "") if place < 0 else (text[:place], "\n" + text[place:])
        head = head.rstrip("\n") + "\n\n" if head.strip() else ""
        return f"{head}{_marker('begin', name)}{block}{_marker('end', name)}\n{tail}"
    return text[: span[0]] + block + text[span[1] :]


def _marker(kind: str, name: str) -> str:
    return f"<!-- results: {kind} {name} -->"


def _find(text: str, name: str, source: str) -> tuple[int, int] | None:
    """Return start and end of the content between the two markers; None without markers.

    Raises:
        UserError: a marker is missing or repeated.
    """
    begin, end = _marker("begin", name), _marker("end", name)
    found = (text.count(begin), text.count(end))
    if found == (0, 0):
        return None
    start, stop = text.find(begin) + len(begin), text.find(end)
    if found != (1, 1) or stop < start:
        raise UserError(f"{source}: the markers '{begin}' and '{end}' must occur once each, in this order. Fix them.")
    return start, stop
