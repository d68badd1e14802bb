"""Tables of runs: rows sorted, with the mean over the seeds of one commit and one configuration."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from speechclip.report.results.rows import ResultRow
from speechclip.report.tables import CONTROL, OWN, Cell, Row, Table

NO_SEED = ""  # the seed of a row that no seed changes, such as chance


@dataclass(frozen=True)
class Entry:
    """A row of a table of runs before the columns are known.

    Attributes:
        model, head, tag, seed: texts that name the row.
        commit: the commits that made the row.
        settings: fingerprint of the configuration.
        cells: by column.
        kind: `OWN` or `CONTROL`.
    """

    model: str
    head: str
    tag: str
    seed: str
    commit: str
    settings: str
    cells: Mapping[str, Cell]
    kind: str = OWN


def entry(row: ResultRow, cells: Mapping[str, Cell], head: str = "", control: bool = False) -> Entry:
    """Return an entry of a result row. head: another name than the row's head."""
    kind = CONTROL if control else OWN
    return Entry(row.model, head or row.head, row.tag, row.seed_text, row.commit_text, row.settings, cells, kind)


def seedless(row: ResultRow, cells: Mapping[str, Cell], head: str) -> Entry:
    """Return an entry that is the same for every seed of a model and tag."""
    return Entry(row.model, head, row.tag, NO_SEED, "", "", cells, CONTROL)


def number(value: float, ci95: Sequence[float] | None = None, digits: int = 1, signed: bool = False) -> Cell:
    """Return a cell of a number with its interval [low, high]."""
    return Cell(value, digits, (ci95[0], ci95[1]) if ci95 else None, signed=signed)


def assemble(title: str, note: str, columns: Sequence[str], entries: Iterable[Entry], digits: int = 1) -> Table:
    """Build a table from entries.

    Seedless entries with equal numbers are shown once. A mean covers the seeds of one model, head, tag, commit and
    configuration. If the entries come from several commits or configurations, a column names the commit.

    Args:
        title: the heading.
        note: a sentence below it.
        columns: the columns with numbers.
        entries: the rows in the order of the data.
        digits: decimals of the means.
    """
    rows: list[Entry] = []
    for item in entries:
        if item.seed != NO_SEED or item not in rows:
            rows.append(item)
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for item in rows:
        groups.setdefault(_group(item), []).append(item)
    rows += [mean for group in groups.values() if (mean := _mean(group, columns, digits))]
    place = {name: at for at, name in enumerate(groups)}
    rows.sort(key=lambda item: _order(item, place[_group(item)]))
    columns_used = ["model", "head", *(["tag"] if any(item.tag for item in rows) else []), "seed"]
    several = len({item.commit for item in rows if item.seed != NO_SEED}) > 1 or _several_settings(groups)
    columns_used += ["commit"] if several else []
    names = [
        tuple(_commit(item) if name == "commit" else str(getattr(item, name)) for name in columns_used) for item in rows
    ]
    cells = [[item.cells.get(column, Cell()) for column in columns] for item in rows]
    body = [Row(name, line, item.kind) for name, line, item in zip(names, cells, rows, strict=True)]
    return Table(title, note, columns, body, tuple(columns_used))


def _group(item: Entry) -> tuple[str, ...]:
    return (item.model, item.head, item.tag, item.commit, item.settings)


def _mean(group: Sequence[Entry], columns: Iterable[str], digits: int) -> Entry | None:
    """Return mean and sample standard deviation of the columns that all seeds have; None for a single seed."""
    seeds = [item for item in group if item.seed.isdigit()]
    if len(seeds) < 2:
        return None
    cells = {}
    for column in columns:
        values = [item.cells[column].value for item in seeds if column in item.cells]
        numbers = [value for value in values if isinstance(value, int | float)]
        if len(numbers) == len(seeds):
            if all(isinstance(value, int) for value in numbers) and len(set(numbers)) == 1:
                cells[column] = seeds[0].cells[column]  # a count that no seed changes
            else:
                signed = seeds[0].cells[column].signed
                mean, deviation = statistics.mean(numbers), statistics.stdev(numbers)
                cells[column] = Cell(mean, digits, deviation=deviation, signed=signed)
    return dataclasses.replace(seeds[0], seed=f"mean of {len(seeds)}", cells=cells)


def _order(item: Entry, group: int) -> tuple[object, ...]:
    """Sort by model, tag and head, controls last, then by commit and seed; a mean follows its seeds."""
    control = 0 if item.kind == OWN else 1 + (item.seed != NO_SEED)
    # of seedless rows the topline comes before chance
    head = ("0" if "topline" in item.head else "1") + item.head if item.seed == NO_SEED else item.head
    number = int(item.seed) if item.seed.isdigit() else 0
    return (item.model, item.tag, control, head, group, not item.seed.isdigit(), number)


def _several_settings(groups: Iterable[tuple[str, ...]]) -> bool:
    names = [group[:4] for group in groups]
    return len(set(names)) < len(names)


def _commit(item: Entry) -> str:
    return f"{item.commit} ({item.settings[:6]})" if item.settings else item.commit
