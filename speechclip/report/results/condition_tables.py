"""Tables of scores under listening conditions: a row for each condition, a column for each system."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from speechclip.data.conditions import Condition
from speechclip.report.results.rows import CONDITIONS, ResultRow
from speechclip.report.tables import Cell, Row, Table

INTRODUCTION = """\
All systems hear the same signals. White noise, babble (six other utterances) and noises of a folder (musan_noise) are
added at an SNR in dB over the speech part. reverb is a room, telephone a band of 300 to 3400 Hz. clipping cuts a
tenth of the speech samples. speed changes pitch and tempo. held_out_speakers are the speakers that training has not
heard. Numbers are means over seeds in percent. Brackets: mean of the seeds' 95% intervals over images, which is at
least as wide as the interval of the mean. Differences are head minus recogniser. (2/3): p < 0.05 in a paired test
over images for two of three seeds."""
THERE = "speech->image"
SIGNIFICANT = 0.05
Group = Sequence[ResultRow]


def condition_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Return tables of R@1, R@10 and word errors, of paired differences, and of the SNRs where a head gets ahead."""
    groups = _groups(rows)
    if not groups:
        return []
    names = list(dict.fromkeys(name for group in groups.values() for row in group for name in _conditions(row)))
    tables = [
        _scores(f"Speech to images in listening conditions, {score}", names, groups, (THERE, score), score)
        for score in ("R@1", "R@10")
    ]
    recognisers = {label: group for label, group in groups.items() if "recognition" in _conditions(group[0])[names[0]]}
    if recognisers:
        tables.append(
            _scores("Word error rate in listening conditions", names, recognisers, ("recognition", "wer"), "wer")
        )
    return tables + _paired(names, groups)


def _groups(rows: Iterable[ResultRow]) -> dict[str, list[ResultRow]]:
    """Return the rows of each system by its label: all seeds of the last commit and settings."""
    groups: dict[str, dict[tuple[str, str, str], list[ResultRow]]] = {}
    for row in rows:
        if row.step == CONDITIONS:
            label = f"{row.head} {row.tag}".strip()
            groups.setdefault(label, {}).setdefault((row.model, row.trained_at, row.settings), []).append(row)
    order = sorted(groups, key=lambda label: (label.startswith("asr"), label))
    return {label: list(groups[label].values())[-1] for label in order}


def _conditions(row: ResultRow) -> Mapping[str, Any]:
    found = row.scores.get("conditions")
    assert isinstance(found, Mapping)
    return found


def _scores(title: str, names: Sequence[str], groups: Mapping[str, Group], path: tuple[str, str], key: str) -> Table:
    """Return a table of one score: the mean over seeds with the mean of the intervals."""
    body = []
    for name in names:
        cells = []
        for group in groups.values():
            found = [_conditions(row)[name][path[0]] for row in group if name in _conditions(row)]
            ends = [item["ci95"][key] for item in found if "ci95" in item]
            ci95 = (statistics.mean(e[0] for e in ends), statistics.mean(e[1] for e in ends)) if ends else None
            cells.append(Cell(statistics.mean(item[path[1]] for item in found), ci95=ci95) if found else Cell())
        body.append(Row(name, cells))
    columns = [f"{label}, {len(group)} seeds" if len(group) > 1 else label for label, group in groups.items()]
    return Table(title, "", columns, body, ("condition",))


def _paired(names: Sequence[str], groups: Mapping[str, Group]) -> list[Table]:
    """Return the paired differences of every head, and the SNRs below which it is ahead."""
    pairs = [
        (label, other, group)
        for label, group in groups.items()
        for other in dict.fromkeys(_system(key) for row in group for key in row.scores.content.get("paired", {}))
    ]
    if not pairs:
        return []
    columns = [f"{label} − {other.partition('_')[2]}" for label, other, _ in pairs]
    body = [Row(name, [_difference(name, other, group) for _, other, group in pairs]) for name in names]
    noises = list(
        dict.fromkeys(
            row["kind"] for row in _conditions(pairs[0][2][0]).values() if Condition(row["kind"], row["value"]).is_noise
        )
    )
    crossing = [Row(kind, [_crossing(kind, other, group) for _, other, group in pairs]) for kind in noises]
    return [
        Table("Paired differences in listening conditions, R@1", "", columns, body, ("condition",)),
        Table("SNR in dB below which a head has a higher R@1, by seed", "", columns, crossing, ("noise",)),
    ]


def _difference(name: str, other: str, group: Group) -> Cell:
    tests = [
        part[name]["R@1"]
        for row in group
        for key, part in row.scores.content["paired"].items()
        if _system(key) == other and name in part
    ]
    if not tests:
        return Cell()
    clear = sum(test["p"] < SIGNIFICANT for test in tests)
    return Cell(f"{statistics.mean(test['difference'] for test in tests):+.1f} ({clear}/{len(tests)})")


def _crossing(kind: str, other: str, group: Group) -> Cell:
    found = [
        part[kind]
        for row in group
        for key, part in row.scores.content["overtakes"].items()
        if _system(key) == other and kind in part
    ]
    return Cell("; ".join(item if isinstance(item, str) else f"{item:.1f}" for item in found) or None)


def _system(folder: str) -> str:
    """Return the name of a system from its experiment folder: the folder without the seed."""
    return re.sub(r"_seed\d+$", "", folder)
