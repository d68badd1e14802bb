"""The tables of a page: scores with their intervals, next to published scores and controls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speechclip.report.results.keyword_tables import KEYWORDS
from speechclip.report.results.published import TABLES
from speechclip.report.results.retrieval_tables import CUTOFFS, RETRIEVAL, branch_scores
from speechclip.report.runs import Run, Scores
from speechclip.report.tables import CONTROL, MIXED, QUOTED, Cell, Row, Table

CONTROLS = {"frequency_prior": "frequency prior", "shuffled_speech": "shuffled speech"}
STOP_WORDS = {"all": "with stop words", "content": "without stop words"}


def cell(value: Any, interval: Any = None, digits: int = 1, signed: bool = False) -> Cell:
    """Return a cell of a number with its interval [low, high]; an empty cell if the value is not a number."""
    if not isinstance(value, int | float):
        return Cell()
    return Cell(value, digits, (interval[0], interval[1]) if interval else None, signed=signed)


def retrieval_tables(run: Run, recipe: str) -> list[Table]:
    """Return the retrieval tables of a run, with the published scores of the recipe, the topline and chance."""
    tables = []
    for title, directions in RETRIEVAL.items():
        present = {name: short for name, short in directions.items() if name in run.retrieval.content}
        if not present:
            continue
        columns = [f"{short} {cutoff}" for short in present.values() for cutoff in (*CUTOFFS, "MRR")]
        queries = ", ".join(
            f"{short}: {run.retrieval.number(name, 'n_queries'):,.0f} queries among "
            f"{run.retrieval.number(name, 'n_gallery'):,.0f}"
            for name, short in present.items()
        )
        table = Table(title, f"Percent, with 95% intervals over images. {queries}.", columns)
        table.rows += _published(title, columns, recipe)
        table.rows.append(Row("this run", _recalls(run.retrieval, present)))
        for name, scores in branch_scores(run.head, run.retrieval):
            table.rows.append(Row(name, _recalls(scores, present)))
        if "text->image" in run.retrieval.content and "speech->image" in present:
            topline = _recalls(run.retrieval, {"text->image": "S→I"})
            table.rows.append(Row("text→image topline", [*topline, *[Cell()] * (len(columns) - len(topline))], CONTROL))
        chance = [
            cell(run.retrieval.number("random", name, key), digits=2) for name in present for key in (*CUTOFFS, "MRR")
        ]
        table.rows.append(Row("chance", chance, CONTROL))
        tables.append(table)
    return tables


def _recalls(scores: Scores, directions: Mapping[str, str]) -> list[Cell]:
    found = []
    for name in directions:
        row = scores.get(name)
        found += [cell(scores.number(name, key), row.get("ci95", {}).get(key)) for key in (*CUTOFFS, "MRR")]
    return found


def _published(own_table: str, columns: Sequence[str], recipe: str) -> Iterator[Row]:
    """Yield the published rows of a recipe that belong to a table of this project."""
    for table in TABLES:
        if table.recipe != recipe or table.own_table != own_table:
            continue
        for line in table.lines:
            numbers = dict(zip(table.columns, line.numbers))
            if numbers:
                cells = [cell(numbers.get(column)) for column in columns]
                yield Row(f"{line.name} ({line.source})", cells, QUOTED)


def keyword_tables(run: Run, recipe: str) -> list[Table]:
    """Return the keyword tables of a run, with the controls that were measured. Empty without keyword scores."""
    if run.keywords is None:
        return []
    content = run.keywords.content
    sweeps = [table for section, title in _SWEEPS.items() for table in _sweep(content, section, title)]
    makers = (_hit_rates(run.keywords, recipe), sweeps, _words(content), _flaws(content), _times(content))
    return [table for tables in makers for table in tables]


def keyword_names(row: Mapping[str, Any]) -> list[str]:
    """Return the names of the keywords in a row of rates, in order."""
    return sorted((name for name in row if re.fullmatch(r"kw\d+", name)), key=lambda name: int(name[2:]))


def _hit_rates(scores: Scores, recipe: str) -> Iterator[Table]:
    for title, score in KEYWORDS.items():
        row = scores.get(score)
        columns = ["avg", *keyword_names(row)]
        size = f"{scores.number('n_utterances', score):,.0f} utterances"
        note = f"Percent of the {size} that have the keyword. avg: percent of all keywords. {_MEANING[score]}"
        table = Table(title, note, columns, [*_published(title, columns, recipe)])
        intervals = scores.content.get("ci95", {}).get(score, {})
        table.rows.append(Row("this run", [cell(row[name], intervals.get(name)) for name in columns]))
        for control, name in CONTROLS.items():
            if control in scores.content:
                values = scores.get(control, score)
                table.rows.append(Row(name, [cell(values.get(column)) for column in columns], CONTROL))
        counted = scores.content.get("n_keywords", {}).get(score)
        if counted:
            table.rows.append(Row("keywords counted", [cell(counted.get(name), digits=0) for name in columns], CONTROL))
        yield table


_MEANING = {
    "clean": "A hit: one of the 5 subwords nearest to the keyword is in the caption.",
    "reference": "A hit as the published code counts it: one of the 5 subwords nearest to the quantised keyword is in"
    " the caption, and special tokens count.",
    "content_top1": "A hit: the nearest content subword is in the caption.",
}


_SWEEPS = {"sweep": "Hit rate by neighbours, clean", "reference_sweep": "Hit rate by neighbours, reference"}


def _sweep(content: Mapping[str, Any], section: str, title: str) -> Iterator[Table]:
    sweep = content.get(section)
    if not sweep:
        return
    columns = [f"{words}: {name}" for words in STOP_WORDS for name in ("hit rate", "prior", "shuffled")]
    note = "Percent of all keywords that hit, by the number K of nearest subwords. content: stop words do not count."
    table = Table(title, note, columns)
    for k in sorted({k for rows in sweep.values() for k in rows}, key=int):
        cells: list[Cell] = []
        for words in STOP_WORDS:
            row = sweep.get(words, {}).get(k, {})
            cells.append(cell(row.get("avg"), row.get("ci95", {}).get("avg")))
            cells += [cell(row.get(control, {}).get("avg")) for control in CONTROLS]
        table.rows.append(Row(f"K = {k}", cells, MIXED))
    yield table


def _words(content: Mapping[str, Any]) -> Iterator[Table]:
    blocks = (
        ("words", "Words of the caption", "Precision: percent of the named words. Recall: percent of the words of the"
         " caption. A keyword names each word that contains its subword. whole: all subwords of the word are named.",
         {"precision": "precision", "recall": "recall", "f1": "F1", "whole_precision": "whole precision",
          "whole_recall": "whole recall", "whole_f1": "whole F1"}, 1),
        ("distinct", "Distinct keywords", "Number of keywords and of distinct nearest subwords per utterance, and"
         " duplicates in percent.",
         {"keywords": "keywords", "distinct": "distinct", "duplicates": "duplicates"}, 1),
        ("gold_cosine", "Cosine to the nearest gold subword", "Cosine of each keyword, averaged over the utterances.",
         None, 3),
    )  # fmt: skip
    for key, title, note, measures, digits in blocks:
        if key not in content:
            continue
        some: Mapping[str, Any] = next(iter(content[key].values()))
        shown = measures or {name: name for name in ("avg", *keyword_names(some))}
        table = Table(title, note, list(shown.values()))
        for words, name in STOP_WORDS.items():
            row = content[key].get(words)
            if row:
                table.rows += _with_controls(row, list(shown), f"this run, {name}", name, digits)
        yield table


def _flaws(content: Mapping[str, Any]) -> Iterator[Table]:
    if "flaws" not in content:
        return
    columns = ["average", "minus clean", "only by special tokens", "frequency prior", "shuffled speech"]
    note = "Hit rate with each flaw of the published code, in percent (5 neighbours, with stop words)."
    table = Table("Flaws of the published scoring", note, columns)
    for name, row in content["flaws"].items():
        difference = row.get("difference", {})
        cells = [cell(row.get("avg"), row.get("ci95", {}).get("avg"))]
        cells += [cell(difference.get("avg"), difference.get("ci95")), cell(row.get("only_special"))]
        cells += [cell(row.get(control, {}).get("avg")) for control in CONTROLS]
        table.rows.append(Row(name.replace("_", " ").replace("+", " + "), cells, MIXED))
    yield table


def _times(content: Mapping[str, Any]) -> Iterator[Table]:
    score = content.get("segmentation")
    if score:
        measures = {"precision": "precision", "recall": "recall", "f1": "F1", "over_segmentation": "over-segmentation",
                    "r_value": "R-value"}  # fmt: skip
        note = (
            f"Boundaries of the keywords' {score['of']} against word boundaries, {1000 * score['tolerance']:.0f} ms of"
            f" tolerance, {score['n_utterances']:,} utterances. Evenly spaced: the same number of boundaries, at equal"
            " distances."
        )
        table = Table("Word boundaries", note, list(measures.values()))
        table.rows += _with_controls(score, list(measures), "this run", "", 1)
        table.rows.append(Row("evenly spaced", [cell(score["uniform"].get(key)) for key in measures], CONTROL))
        yield table
    score = content.get("overlap")
    if score:
        note = (
            f"named: percent of {score['n_keywords']:,} keywords whose nearest content subword is in an aligned word."
            f" overlap: percent of the named keywords whose {score['of']} overlap that word. The {score['of']} are"
            f" {score['mean_seconds']:.2f} s long on average."
        )
        table = Table("Time of the named word", note, ["named", "overlap"])
        table.rows += _with_controls(score, ["named", "overlap"], "this run", "", 1)
        anywhere = score.get("random_position", {})
        table.rows.append(Row("random position", [Cell(), cell(anywhere.get("overlap"))], CONTROL))
        yield table


def _with_controls(row: Mapping[str, Any], keys: Sequence[str], name: str, which: str, digits: int) -> Iterator[Row]:
    """Yield a row of measures with intervals, and a row for each control that it has."""
    yield Row(name, [cell(row.get(key), row.get("ci95", {}).get(key), digits) for key in keys])
    for control, title in CONTROLS.items():
        if control in row:
            label = f"{title}, {which}" if which else title
            yield Row(label, [cell(row[control].get(key), digits=digits) for key in keys], CONTROL)
