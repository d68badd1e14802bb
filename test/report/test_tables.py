"""The table model: how cells print numbers, and the Markdown of a table."""

from __future__ import annotations

from typing import Any

import pytest

from speechclip.report.tables import CONTROL, Cell, Row, Table, inline_code, render_markdown


@pytest.mark.parametrize(
    ("cell", "text", "interval"),
    [
        ({}, "–", ""),
        ({"value": "two words"}, "two words", ""),
        ({"value": 12.345}, "12.3", ""),
        ({"value": 12.345, "digits": 2}, "12.35", ""),
        ({"value": 7483917, "digits": 0}, "7,483,917", ""),
        ({"value": 0}, "0.0", ""),
        ({"value": 0.004, "digits": 2}, "0.004", ""),
        ({"value": 0.02, "digits": 2}, "0.02", ""),
        ({"value": 40.0, "ci95": (37.04, 43.0)}, "40.0", "[37.0, 43.0]"),
        ({"value": 2.0, "ci95": (-1.0, 3.0), "signed": True}, "+2.0", "[-1.0, +3.0]"),
        ({"value": 62.5, "deviation": 3.122, "digits": 2}, "62.50 ± 3.12", ""),
    ],
)
def test_cell_prints_its_number(cell: dict[str, Any], text: str, interval: str) -> None:
    assert (Cell(**cell).text, Cell(**cell).interval) == (text, interval)


def test_markdown_aligns_numbers_right() -> None:
    rows = [
        Row(("a", ""), [Cell(1.0, ci95=(0.5, 1.5)), Cell("x")]),
        Row(("long name", "1"), [Cell(20.0), Cell("yy")], CONTROL),
    ]
    table = Table("Title", "A note.", ["score", "text"], rows, ("name", "seed"))
    assert render_markdown(table).splitlines() == [
        "### Title",
        "",
        "A note.",
        "",
        "| name      | seed |          score | text |",
        "| --------- | ---: | -------------: | ---- |",
        "| a         |    – | 1.0 [0.5, 1.5] | x    |",
        "| long name |    1 |           20.0 | yy   |",
    ]


def test_markdown_of_a_page_table_has_one_name_column() -> None:
    table = Table("Title", "", ["score"], [Row("this run", [Cell(1.0)])])
    assert render_markdown(table).splitlines()[-1] == "| this run |   1.0 |"


@pytest.mark.parametrize(
    ("text", "code"), [("a b", "`a b`"), ("a | b\nc", r"`a \| b c`"), ("say `x`", "`` say `x` ``")]
)
def test_inline_code_fits_a_table_cell(text: str, code: str) -> None:
    assert inline_code(text) == code
