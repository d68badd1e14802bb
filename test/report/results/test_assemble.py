"""Tables of runs: means over the seeds of one commit and configuration, order, and the commit column."""

from __future__ import annotations

from typing import Any

import pytest

from speechclip.report.results.assemble import Entry, assemble
from speechclip.report.tables import CONTROL, Cell, Table


def item(
    seed: str, value: float, head: str = "parallel", commit: str = "aaa", settings: str = "s", **more: Any
) -> Entry:
    fields = {"model": "tiny", "tag": "", "cells": {"score": Cell(value)}, **more}
    return Entry(head=head, seed=seed, commit=commit, settings=settings, **fields)


def lines(table: Table) -> list[tuple[str, ...]]:
    return [(*row.name, *(cell.text for cell in row.cells)) for row in table.rows]


def test_mean_covers_the_seeds_of_one_commit() -> None:
    entries = [item("0", 60.0), item("1", 61.5), item("2", 66.0), item("0", 10.0, commit="bbb")]
    table = assemble("t", "", ["score"], entries)
    assert table.name_columns == ("model", "head", "seed", "commit")
    assert lines(table) == [
        ("tiny", "parallel", "0", "aaa (s)", "60.0"),
        ("tiny", "parallel", "1", "aaa (s)", "61.5"),
        ("tiny", "parallel", "2", "aaa (s)", "66.0"),
        ("tiny", "parallel", "mean of 3", "aaa (s)", "62.5 ± 3.1"),
        ("tiny", "parallel", "0", "bbb (s)", "10.0"),
    ]


def test_mean_covers_the_seeds_of_one_configuration() -> None:
    entries = [item("0", 60.0), item("1", 62.0), item("0", 10.0, settings="u"), item("1", 12.0, settings="u")]
    table = assemble("t", "", ["score"], entries)
    assert [line[2:] for line in lines(table)] == [
        ("0", "aaa (s)", "60.0"), ("1", "aaa (s)", "62.0"), ("mean of 2", "aaa (s)", "61.0 ± 1.4"),
        ("0", "aaa (u)", "10.0"), ("1", "aaa (u)", "12.0"), ("mean of 2", "aaa (u)", "11.0 ± 1.4"),
    ]  # fmt: skip


def test_heads_of_one_commit_have_no_commit_column() -> None:
    entries = [item("0", 60.0), item("0", 20.0, head="cascaded", settings="u")]
    assert assemble("t", "", ["score"], entries).name_columns == ("model", "head", "seed")


def test_seeds_are_sorted_as_numbers_and_controls_follow() -> None:
    entries = [
        item("10", 1.0), item("2", 2.0), item("", 0.5, head="*chance*", commit="", settings="", kind=CONTROL),
        item("2", 3.0, head="*prior* (x)", kind=CONTROL), item("0", 9.0, head="cascaded"),
        item("", 0.5, head="*chance*", commit="", settings="", kind=CONTROL),
        item("", 70.0, head="*text→image topline*", commit="", settings="", kind=CONTROL),
    ]  # fmt: skip
    assert [line[1:3] for line in lines(assemble("t", "", ["score"], entries))] == [
        ("cascaded", "0"), ("parallel", "2"), ("parallel", "10"), ("parallel", "mean of 2"),
        ("*text→image topline*", ""), ("*chance*", ""), ("*prior* (x)", "2"),
    ]  # fmt: skip


def test_rows_without_a_seed_differ_by_their_numbers() -> None:
    chance = [item("", value, head="*chance*", commit="", settings="", kind=CONTROL) for value in (0.5, 0.5, 0.7)]
    assert [line[-1] for line in lines(assemble("t", "", ["score"], chance))] == ["0.5", "0.7"]


def test_unknown_seeds_and_single_seeds_have_no_mean() -> None:
    entries = [item("unknown", 1.0), item("3", 2.0), item("0", 3.0, tag="x")]
    table = assemble("t", "", ["score"], entries)
    assert table.name_columns == ("model", "head", "tag", "seed")
    assert [line[2:] for line in lines(table)] == [("", "3", "2.0"), ("", "unknown", "1.0"), ("x", "0", "3.0")]


@pytest.mark.parametrize(
    ("first", "second", "mean"),
    [
        ({"size": Cell(7, 0)}, {"size": Cell(7, 0)}, "7"),
        ({"size": Cell(7, 0)}, {"size": Cell(9, 0)}, "8.0 ± 1.4"),
        ({"size": Cell(7.0)}, {"size": Cell(7.0)}, "7.0 ± 0.0"),
        ({"size": Cell(-1.0, signed=True)}, {"size": Cell(3.0, signed=True)}, "+1.0 ± 2.8"),
        ({"size": Cell(7.0)}, {}, "–"),
        ({"size": Cell(7.0)}, {"size": Cell()}, "–"),
    ],
)
def test_mean_of_a_column_needs_every_seed(first: dict[str, Cell], second: dict[str, Cell], mean: str) -> None:
    table = assemble("t", "", ["size"], [item("0", 0, cells=first), item("1", 0, cells=second)])
    assert lines(table)[-1] == ("tiny", "parallel", "mean of 2", mean)
