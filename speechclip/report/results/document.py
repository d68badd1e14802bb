"""RESULTS.md: the tables of ``results.jsonl`` in a text that people write."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import replace_file
from speechclip.report.results import (
    condition_tables,
    heads_table,
    keyword_tables,
    language_tables,
    published,
    retrieval_tables,
    spotting_tables,
    test_set_tables,
)
from speechclip.report.results.rows import STEPS, TRAIN, ResultRow, merge_rows, read_rows, rows_of_run, write_rows
from speechclip.report.runs import Run
from speechclip.report.tables import ABSENT, Cell, Row, Table, inline_code, render_markdown

DATA, DOCUMENT, TEMPLATE = "results.jsonl", "RESULTS.md", "RESULTS.template.md"
COMMANDS = "Commands"
Section = tuple[str, Callable[[], list[Table]]]  # an introduction, and the function that makes the tables
#: Name of a section, its introduction, and the tables that it makes of the rows.
SECTIONS: dict[str, tuple[str, Callable[[Sequence[ResultRow], str], list[Table]]]] = {
    "heads": (heads_table.INTRODUCTION, lambda rows, recipe: heads_table.heads_tables(rows)),
    "retrieval": (retrieval_tables.INTRODUCTION, lambda rows, recipe: retrieval_tables.retrieval_tables(rows)),
    "test_sets": (test_set_tables.INTRODUCTION, lambda rows, recipe: test_set_tables.test_set_tables(rows)),
    "languages": (language_tables.INTRODUCTION, lambda rows, recipe: language_tables.language_tables(rows)),
    "keywords": (keyword_tables.INTRODUCTION, lambda rows, recipe: keyword_tables.keyword_tables(rows)),
    "spotting": (spotting_tables.INTRODUCTION, lambda rows, recipe: spotting_tables.spotting_tables(rows)),
    "conditions": (condition_tables.INTRODUCTION, lambda rows, recipe: condition_tables.condition_tables(rows)),
    "published": (published.INTRODUCTION, lambda rows, recipe: published.published_tables(recipe, _own_tables(rows))),
    "commands": ("The commands and commits that made the tables.", lambda rows, recipe: command_tables(rows)),
}
_DEFAULT_TEMPLATE = "# Results\n\n" + "\n\n".join(f"<!-- tables: {name} -->" for name in SECTIONS) + "\n"


def update_results(out: Path, runs: Sequence[Run], recipe: str) -> list[ResultRow]:
    """Write the tables of runs, and their data as ``results.jsonl`` next to them. Rows of other runs stay.

    Args:
        out: the Markdown file.
        runs: scored runs. Their rows replace all older rows of the same runs.
        recipe: name of the recipe. Its published tables are shown.
    Returns:
        all rows.
    Raises:
        UserError: a run lacks a score, two runs have the same name, or the old data are damaged.
    """
    data = out.parent / DATA
    new = [row for run in runs for row in rows_of_run(run, recipe)]
    rows = merge_rows(read_rows(data), new, replace=True)
    text = render(rows, recipe, _DEFAULT_TEMPLATE, str(out))  # before the first write, so that an error changes nothing
    write_rows(data, rows)
    replace_file(out, text.encode())
    return rows


def commit_results(
    folder: Path, runs: Sequence[Run], *, replace: bool = False, steps: Sequence[str] = ()
) -> list[ResultRow]:
    """Add runs to the committed results of a recipe and render its RESULTS.md again.

    Args:
        folder: the folder of the recipe, with RESULTS.template.md.
        runs: scored runs; none to render only.
        replace: drop all older rows of these runs. Otherwise rows of other commits stay.
        steps: steps to add, such as "spotting" or "retrieval test_unseen"; none for all.
    Returns:
        all rows.
    Raises:
        UserError: the template or a score is missing, no run has one of the steps, or a run was made with uncommitted
            code.
    """
    template = folder / TEMPLATE
    try:
        text = template.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(template) from None
    new = [row for run in runs for row in rows_of_run(run, folder.resolve().name)]
    if absent := set(steps) - {row.step for row in new}:
        known = ", ".join(dict.fromkeys(row.step for row in new))
        raise UserError(f"--steps: no run has the step '{min(absent)}' (steps: {known}). Score it first.")
    new = [row for row in new if not steps or row.step in steps]
    for row in new:
        if row.commit.endswith("-dirty") or row.trained_at.endswith("-dirty"):
            raise UserError(
                f"{row.scores.path}: made by uncommitted code ({row.commit}). Commit the code and run the recipe again."
            )
    rows = merge_rows(read_rows(folder / DATA), new, replace=replace)
    note = (
        f"<!-- Rendered from {TEMPLATE} and {DATA} by `python -m speechclip.bin.results --commit_to"
        f" egs/{folder.resolve().name}`. Edit these files. -->\n\n"
    )
    document = render(rows, folder.resolve().name, text, str(template))
    if rows:
        write_rows(folder / DATA, rows)
    replace_file(folder / DOCUMENT, (note + document).encode())
    return rows


def render(rows: Sequence[ResultRow], recipe: str, template: str, source: str) -> str:
    """Return a template with its tables. A section without tables is left out.

    Args:
        rows: the measurements.
        recipe: name of the recipe, for published tables.
        template: Markdown. A line ``<!-- tables: NAME -->`` stands for a section of `SECTIONS`.
        source: the template's name in errors.
    Raises:
        UserError: an unknown section.
    """
    sections: dict[str, Section] = {
        name: (introduction, functools.partial(make, rows, recipe)) for name, (introduction, make) in SECTIONS.items()
    }
    return fill_template(template, sections, source)


def fill_template(template: str, sections: Mapping[str, Section], source: str) -> str:
    """Return a template with its tables. A section without tables is left out.

    Args:
        template: Markdown. A line ``<!-- tables: NAME -->`` stands for a section.
        sections: introduction of each section, and the function that makes its tables.
        source: the template's name in errors.
    Raises:
        UserError: an unknown section.
    """
    lines: list[str] = []
    for number, line in enumerate(template.splitlines(), start=1):
        if not line.startswith("<!-- tables:"):
            lines.append(line)
            continue
        name = line.removeprefix("<!-- tables:").removesuffix("-->").strip()
        if name not in sections:
            raise UserError(f"{source}: line {number}: unknown section '{name}'. Known: {', '.join(sections)}.")
        introduction, make = sections[name]
        tables = make()
        if tables:
            lines += [introduction, "", "\n".join(render_markdown(table) for table in tables).rstrip("\n")]
        elif lines and not lines[-1]:
            lines.pop()  # the empty line before a section that is left out
    return "\n".join(lines) + "\n"


def command_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Return the table of commands. Runs that differ in the seed only share a row."""
    seeds: dict[tuple[str, ...], list[str]] = {}
    for row in sorted(rows, key=lambda row: (row.model, row.tag, row.head, STEPS.index(row.step_name), row.step)):
        command = inline_code(row.recipe_command or row.command)
        key = (row.model, row.head, row.tag, row.step, _short(row.commit), _size(row), command)
        seeds.setdefault(key, []).append(row.seed_text)
    tag = any(key[2] for key in seeds)
    body = [
        Row(tuple(name or ABSENT for name in (*key[:2], *([key[2]] if tag else []), ", ".join(sorted(names)))),
            [Cell(text or None) for text in key[3:]])
        for key, names in seeds.items()
    ]  # fmt: skip
    columns = ("step", "commit", "size", "command")
    names = ("model", "head", *(["tag"] if tag else []), "seeds")
    return [Table(COMMANDS, "", columns, body, names)] if body else []


def _own_tables(rows: Sequence[ResultRow]) -> dict[str, Table]:
    tables = [*retrieval_tables.retrieval_tables(rows), *keyword_tables.keyword_tables(rows)]
    return {table.title: table for table in tables}


def _size(row: ResultRow) -> str:
    """Return what a step worked on: trained parameters, or utterances and images."""
    content = row.scores.content
    if row.step == TRAIN:
        return f"{content['trained']:,} trained parameters" if isinstance(content.get("trained"), int) else ""
    if "speech->image" in content:
        numbers = [row.scores.number("speech->image", key) for key in ("n_queries", "n_gallery")]
        return f"{numbers[0]:,.0f} utterances, {numbers[1]:,.0f} images"
    counted = content.get("n_utterances", {}).get("clean")
    return f"{counted:,} utterances" if isinstance(counted, int) else ""


def _short(commit: str) -> str:
    name, dash, suffix = commit.partition("-")
    return name[:12] + dash + suffix
