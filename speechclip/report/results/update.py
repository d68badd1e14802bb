"""RESULTS.md of a recipe: tables of runs between markers, merged with what stands there, text around them kept.

Rows are named by model, head, tag and seed. A run replaces its own rows and leaves the others; the mean over the seeds
is computed again from the rows of the table itself. Rows of the topline and of chance belong to no seed; the last run
of their model and tag writes them.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from speechclip.common.errors import UserError
from speechclip.common.files import replace_file
from speechclip.report.results import boundaries, keyword_tables, overview, published
from speechclip.report.results.keyword_tables import keyword_rows_of
from speechclip.report.results.markdown import Table, code, read_block, write_block
from speechclip.report.results.published import published_tables
from speechclip.report.runs import UNKNOWN_SEED, Run, Scores

Row = dict[str, str]

KEY = ("model", "head", "tag", "seed")
CUTOFFS = ("R@1", "R@5", "R@10")
CHANCE, TOPLINE = "*chance*", "*text→image topline*"
#: Title of a retrieval table, and the directions in it with their short names.
RETRIEVAL = {
    "Speech and images": {"speech->image": "S→I", "image->speech": "I→S"},
    "Speech and captions, own caption": {"speech->text": "S→T", "text->speech": "T→S"},
    "Speech and captions, any caption of the image": {
        "speech->text (any caption)": "S→T",
        "text->speech (any caption)": "T→S",
    },
}
#: Title of a table of keyword hit rates, and its score.
KEYWORDS = keyword_tables.KEYWORDS
PROVENANCE = "Commands"

INTRODUCTIONS = {
    "heads": overview.INTRODUCTION,
    "retrieval": """\
Recall in percent. S→I: speech finds its image; I→S: an image finds any of its utterances; S→T and T→S: speech and
written captions, on which no head is trained. The topline finds images by their true captions; chance is exact. MRR
and 95% intervals over images are in `scores/retrieval.json` of the run.""",
    "keywords": f"{keyword_tables.INTRODUCTION}\n\n{boundaries.INTRODUCTION}",
    "provenance": "What made the rows above.",
}


def update_results(path: str | Path, runs: Iterable[Run], recipe: str = "") -> None:
    """Merge the rows of the runs into the file, which appears whole or stays as it was; it is created when missing.

    ``recipe`` names the tables of the paper that stand beside them, where there are any.
    Raises UserError: a file that is not UTF-8, broken markers or tables in it, a run that lacks a score of its rows.
    """
    target = Path(path)
    try:
        text = target.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = "# Results\n"
    except UnicodeDecodeError as error:
        raise UserError(f"{target}: not UTF-8 (byte {error.start})") from error
    merged = merge(text, list(runs), source=str(target), recipe=recipe)
    replace_file(target, merged.encode())


def merge(text: str, runs: Sequence[Run], source: str = "RESULTS.md", recipe: str = "") -> str:
    """The text of a results file with the rows of the runs merged in, and the published tables of the recipe."""
    written = [_name(run) for run in runs]
    for i, name in enumerate(written):
        if name in written[:i]:
            raise UserError(
                f"{runs[i].directory}: has the model, head, tag and seed of {runs[written.index(name)].directory}"
            )
    for run in runs:
        written += [_name(run, head) for head, _ in overview.branch_scores(run)]
        written += [_name(run, f"{kind} ({run.head})") for kind in keyword_tables.CONTROLS]
        written.append((*_name(run, f"{keyword_tables.PRIOR} ({run.head})")[:3], ""))  # as older versions wrote it
    makers: dict[str, dict[str, Callable[[Run], Iterator[Row]]]] = {
        "heads": {overview.TITLE: overview.overview_rows},
        "retrieval": {title: _retrieval_rows_of(title) for title in RETRIEVAL},
        "keywords": {
            **{title: keyword_rows_of(title) for title in keyword_tables.TITLES},
            boundaries.TITLE: boundaries.boundary_rows,
        },
        "provenance": {PROVENANCE: _provenance_rows},
    }
    for block, tables in makers.items():
        old = read_block(text, block, source)
        unknown = sorted(set(old) - set(tables))
        if unknown:
            raise UserError(f"{source}: {unknown[0]!r} is no table of the results; put it outside the markers")
        merged = []
        for title, rows_of in tables.items():
            kept = _kept_rows(old[title], written, source) if title in old else []
            merged.append(_table(title, [*kept, *(row for run in runs for row in rows_of(run))]))
        text = write_block(text, block, source, INTRODUCTIONS[block], merged, before="provenance")
    blocks = [read_block(text, block, source) for block in ("retrieval", "keywords")]
    own = {title: table.rows for tables in blocks for title, table in tables.items()}
    beside = published_tables(recipe, own)
    if beside:
        text = write_block(text, published.BLOCK, source, published.INTRODUCTION, beside, before="provenance")
    return text


def _kept_rows(table: Table, written: Sequence[tuple[str, ...]], source: str) -> list[Row]:
    """Rows of an old table that no run writes again, without the means."""
    missing = {"model", "head", "seed"} - set(table.columns)
    if missing:
        raise UserError(f"{source}: the table {table.title!r} has no column {sorted(missing)[0]!r}")
    rows = [dict(row) for row in table.rows if not row.get("seed", "").startswith("mean of")]
    for row in rows if table.title != PROVENANCE else []:
        for column in row.keys() - set(KEY):
            try:
                overview.value_of(row[column])
            except ValueError:
                raise UserError(f"{source}: {table.title}: {row[column]!r} under {column!r} is no number") from None
    return [row for row in rows if tuple(row.get(name, "") for name in KEY) not in written]


def _table(title: str, rows: Iterable[Row]) -> Table:
    """Rows in order with their means; of rows with the same name the last one stays."""
    named = {tuple(row.get(name, "") for name in (*KEY, "step")): row for row in rows}
    single = list(named.values())
    columns = _columns(title, single)
    digits = 2 if title in RETRIEVAL else 1
    every = single if title == PROVENANCE else [*single, *_means(single, columns, digits)]
    keys = [name for name in KEY if name != "tag" or any(row.get("tag") for row in every)]
    return Table(title, (*keys, *columns), tuple(sorted(every, key=_order)))


def _columns(title: str, rows: Iterable[Row]) -> list[str]:
    """The columns of a table behind those that name the row."""
    if title == PROVENANCE:
        recipe = ["recipe command"] if any("recipe command" in row for row in rows) else []
        return ["step", "commit", "size", *recipe, "command"]
    if title == overview.TITLE:
        return [column for column in overview.COLUMNS if any(column in row for row in rows)]
    if title == boundaries.TITLE:
        return list(boundaries.COLUMNS)
    if title in RETRIEVAL:
        recalls = [f"{short} {cutoff}" for short in RETRIEVAL[title].values() for cutoff in CUTOFFS]
        return [*recalls, "mean R@10"] if title == "Speech and images" else recalls
    return keyword_tables.columns_of(title, rows)


def _means(rows: Iterable[Row], columns: Iterable[str], digits: int) -> Iterator[Row]:
    """For every model, head and tag with several seeds: mean ± sample standard deviation of what all of them have."""
    seeds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.get("seed", UNKNOWN_SEED) != UNKNOWN_SEED:
            seeds.setdefault(tuple(row.get(name, "") for name in KEY[:3]), []).append(row)
    for name, group in seeds.items():
        if len(group) < 2:
            continue
        mean = dict(zip(KEY[:3], name, strict=True)) | {"seed": f"mean of {len(group)}"}
        for column in columns:
            if all(column in row for row in group):
                values = [overview.value_of(row[column]) for row in group]
                if column == overview.SIZE and len(set(values)) == 1:
                    mean[column] = group[0][column]
                    continue
                mean[column] = f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
        yield mean


def _order(row: Mapping[str, str]) -> tuple[object, ...]:
    """By model and tag; in these heads by name, their seeds and mean, then topline, chance and prior."""
    head, seed, step = row["head"], row.get("seed", ""), row.get("step", "")
    place = (TOPLINE, CHANCE).index(head) + 1 if head in (TOPLINE, CHANCE) else 3 * head.startswith("*")
    steps = ("train", "retrieval", "keywords")
    return (
        row["model"],
        row.get("tag", ""),
        place,
        head,
        not seed.isdigit(),
        int(seed) if seed.isdigit() else 0,
        steps.index(step) if step in steps else -1,
    )


def _name(run: Run, head: str | None = None) -> tuple[str, ...]:
    """The texts in the columns that name the rows of a run, or of one of its further branches."""
    return (run.model, head or run.head, run.tag, run.seed_text)


def _start(run: Run, head: str | None = None) -> Row:
    """A row of a run, or, given another head, of its model and tag."""
    values = _name(run) if head is None else (run.model, head, run.tag, "")
    return {name: value for name, value in zip(KEY, values, strict=True) if value}


def _number(value: float) -> str:
    """Two decimals; of a small chance level two significant digits."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


def _retrieval_rows_of(title: str) -> Callable[[Run], Iterator[Row]]:
    """A maker of the rows of one retrieval table."""
    directions = RETRIEVAL[title]

    def recalls(scores: Scores, path: tuple[str, ...], short: str) -> Row:
        return {f"{short} {cutoff}": _number(scores.number(*path, cutoff)) for cutoff in CUTOFFS}

    def rows(run: Run) -> Iterator[Row]:
        scores, pictures = run.retrieval, title == "Speech and images"
        present = {name: short for name, short in directions.items() if pictures or name in scores.content}
        if not present:
            return
        row, chance = _start(run), _start(run, CHANCE)
        for name, short in present.items():
            row |= recalls(scores, (name,), short)
            chance |= recalls(scores, ("random", name), short)
        if pictures:
            row["mean R@10"] = _number(scores.number("mean_R@10"))
            both = [scores.number("random", name, "R@10") for name in present]
            chance["mean R@10"] = _number(statistics.mean(both))
            if "text->image" in scores.content:
                yield _start(run, TOPLINE) | recalls(scores, ("text->image",), "S→I")
        yield row
        for head, other in overview.branch_scores(run):
            row = dict(zip(KEY, _name(run, head), strict=True))
            for name, short in present.items():
                row |= recalls(other, (name,), short)
            if pictures:
                row["mean R@10"] = _number(other.number("mean_R@10"))
            yield {name: value for name, value in row.items() if value}
        yield chance

    return rows


def _provenance_rows(run: Run) -> Iterator[Row]:
    """What was run, from which commit, on how much, for each step of a run."""
    if run.training:
        parameters, seconds = (run.training.content.get(key) for key in ("trained", "train_seconds"))
        about = [f"{parameters:,} trained parameters"] if isinstance(parameters, int) else []
        about += [f"{seconds:,.0f} s"] if isinstance(seconds, int | float) else []
        yield _step(run, "train", run.training, (), ", ".join(about))
    queries, gallery = (run.retrieval.number("speech->image", key) for key in ("n_queries", "n_gallery"))
    about = [f"{queries:,.0f} utterances, {gallery:,.0f} images"]
    yield _step(run, "retrieval", run.retrieval, ("provenance",), *about)
    if run.keywords:
        counted = run.keywords.content.get("n_utterances")
        about = [f"{counted['clean']:,} utterances"] if isinstance(counted, Mapping) and "clean" in counted else []
        yield _step(run, "keywords", run.keywords, ("provenance",), *about)


def _step(run: Run, step: str, scores: Scores, path: tuple[str, ...], about: str = "") -> Row:
    """A row of the provenance table."""
    commit = str(scores.get(*path, "commit") or "unknown")
    short = re.sub(r"[0-9a-f]{12,}", lambda found: found.group()[:12], commit)
    row = {"step": step, "commit": short, "size": about, "command": code(str(scores.get(*path, "command")))}
    recipe = (scores.get(*path) if path else scores.content).get("recipe_command")
    return _start(run) | row | ({"recipe command": code(str(recipe))} if recipe else {})
