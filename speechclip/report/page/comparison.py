"""The page of two runs: their scores, the significance of the differences, curves, and utterances that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.constants import SCORES
from speechclip.common.errors import UserError
from speechclip.data.audio import load_audio
from speechclip.eval.ranking import first_hit_ranks
from speechclip.eval.score_files import CONTRIBUTIONS, RANKS, compare_keyword_files, compare_rank_files
from speechclip.report.figures import plots
from speechclip.report.figures import run_figures as figures
from speechclip.report.page.drawings import Drawing, draw
from speechclip.report.page.eval_split import EvalSplit
from speechclip.report.page.examples import top
from speechclip.report.page.media import audio_uri
from speechclip.report.page.page import commands, facts, write_html
from speechclip.report.page.tables import STOP_WORDS, cell, keyword_names
from speechclip.report.page.viewer import Gallery
from speechclip.report.runs import Run
from speechclip.report.tables import CONTROL, MIXED, OWN, Cell, Row, Table

Test = Mapping[str, Any]  # first, second, difference, ci95 and p of a score, see significance.paired_test
Tests = Mapping[str, Mapping[str, Test]]
SIGNIFICANT = 0.05  # rows with a smaller p are bold
#: The rows of the table of keyword scores: name, key among the tests, digits, and keys in keywords.json.
_KEYWORDS: list[tuple[str, str, int, tuple[str, ...]]] = [
    *((name, name, 1, (name, "avg")) for name in ("clean", "reference", "content_top1")),
    *(
        (f"cosine to the caption, {said}", f"gold_cosine {kind}", 3, ("gold_cosine", kind, "avg"))
        for kind, said in STOP_WORDS.items()
    ),
    *(
        (f"{shown} of words, {said}", f"words {kind} {key}", 1, ("words", kind, key))
        for kind, said in STOP_WORDS.items()
        for key, shown in (
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "F1"),
            ("whole_f1", "whole F1"),
        )
    ),
]


def paired_tests(runs: Sequence[Run], permutations: int, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Test the retrieval scores of two runs. Return a test by direction and score: see `compare_rank_files`."""
    first, second = ([run.directory / SCORES / RANKS] for run in runs)
    return compare_rank_files(first, second, n=permutations, seed=seed)


def keyword_tests(runs: Sequence[Run], permutations: int, seed: int) -> dict[str, dict[str, Any]]:
    """Test the keyword scores of two runs. Return a test by score: see `compare_keyword_files`; {} without keywords."""
    if any(run.keywords is None for run in runs):
        return {}
    first, second = ([run.directory / SCORES / CONTRIBUTIONS] for run in runs)
    return compare_keyword_files(first, second, permutations, seed)


def write_comparison(
    runs: Sequence[Run], eval_splits: Sequence[EvalSplit], tests: Tests, keywords: Mapping[str, Test], out: Path,
    each: int = 4, permutations: int = 10000,
) -> Path:  # fmt: skip
    """Write the page of two runs.

    Args:
        runs: the two runs.
        eval_splits: the split with the speech of each run.
        tests: see :func:`paired_tests`.
        keywords: see :func:`keyword_tests`.
        out: the page.
        each: number of utterances to show per run.
        permutations: number of permutations of the tests, for the text.

    Returns:
        The page.
    """
    names = run_names(runs)
    gallery, shown, heavy = _where_they_differ(eval_splits, names, each)
    pictures = gallery.pictures()
    heavy["images"] = [picture.pop("uri") for picture in pictures]
    content = {
        "title": f"{names[0]} and {names[1]}",
        "names": names,
        "facts": [facts(run) for run in runs],
        "commands": [commands(run) for run in runs],
        "tables": [*significance_tables(runs, names, tests), *_keyword_tables(runs, names, keywords)],
        "permutations": permutations,
        "drawings": _drawings(runs, names),
        "differing": shown,
        "alts": [picture["alt"] for picture in pictures],
    }
    return write_html(out, "comparison.html.j2", content, data=None, media=heavy)


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return names for two runs: the shortest ends of their folders that differ.

    Raises:
        UserError: both are the same folder.
    """
    folders = [run.directory.resolve() for run in runs]
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if names[0] != names[1]:
            return names
    raise UserError(f"{runs[0].directory}: cannot be compared with itself. Give two runs.")


def significance_tables(runs: Sequence[Run], names: Sequence[str], tests: Tests) -> list[Table]:
    """Return a table for every direction: the scores of both runs with intervals, the difference and its p-value."""
    tables = []
    for direction, scores in tests.items():
        rows = [run.retrieval.content.get(direction, {}).get("ci95", {}) for run in runs]
        table = Table(direction.replace("->", " → "), "Percent.", [*names, "difference", "p"])
        for score, row in scores.items():
            cells = [cell(row[key], interval.get(score)) for key, interval in zip(("first", "second"), rows)]
            table.rows.append(_tested(score, cells, row))
        tables.append(table)
    return tables


def _tested(name: str, cells: Sequence[Cell], test: Test | None, digits: int = 1) -> Row:
    """Return the row of a score: both runs, the difference with its interval, and p. It is bold if p is small."""
    if test is None:
        return Row(name, [*cells, Cell(), Cell()], MIXED)
    tested = [cell(test["difference"], test["ci95"], digits, signed=True), Cell(test["p"], 4)]
    return Row(name, [*cells, *tested], OWN if test["p"] < SIGNIFICANT else CONTROL)


def _keyword_tables(runs: Sequence[Run], names: Sequence[str], tests: Mapping[str, Test]) -> Iterator[Table]:
    """Yield the table of all keyword scores that both runs have, with the tests that are available."""
    note = "Percent or cosines, over all keywords or words of the utterances that both runs were scored on."
    table = Table("Keywords", note, [*names, "difference", "p"])
    for name, key, digits, path in _KEYWORDS:
        test = tests.get(key)
        scored = [_value(run, path) for run in runs]
        if any(value is None for value, _ in scored):
            continue
        values = [value for value, _ in scored] if test is None else [test["first"], test["second"]]
        cells = [cell(value, interval, digits) for value, (_, interval) in zip(values, scored, strict=True)]
        table.rows.append(_tested(name, cells, test, digits))
    if table.rows:
        yield table


def _value(run: Run, path: tuple[str, ...]) -> tuple[float | None, Any]:
    """Return a keyword score and its interval; None if it is missing."""
    if run.keywords is None:
        return None, None
    row: Any = run.keywords.content
    for key in path[:-1]:
        row = row.get(key, {})
    intervals = run.keywords.content.get("ci95", {}).get(path[0], {}) if len(path) == 2 else row.get("ci95", {})
    return row.get(path[-1]), intervals.get(path[-1])


def _drawings(runs: Sequence[Run], names: Sequence[str]) -> list[Drawing]:
    """Return the training curves, layer weights and keyword hit rates, as far as both runs have them."""
    found = []
    logs = [run.directory / "metrics.jsonl" for run in runs]
    if all(log.exists() for log in logs):
        metrics = [figures.read_metrics(log) for log in logs]
        for at, (title, unit, keys) in enumerate(
            (("Training loss", "loss", ("loss",)), ("Mean R@10 on dev", "percent", ("dev", "mean_R@10")))
        ):
            curves = {name: figures.series(lines, keys) for name, lines in zip(names, metrics, strict=True)}
            if all(steps for steps, _ in curves.values()):
                ends = ", ".join(f"{name} ends at {values[-1]:.3g}" for name, (_, values) in curves.items())
                maker = _titled(plots.paired_curves, title, unit)
                found.append(draw(logs[0], maker, curves, f"curve-{at}", title, f"{ends}."))
        weights = [figures.best_layer_weights(lines) for lines in metrics]
        if all(weights):
            rows = {
                name: {str(number): value for number, value in enumerate(row[1])}
                for name, row in zip(names, weights) if row
            }  # fmt: skip
            found.append(_bars(logs[0], rows, "Layer weights", "weight", "weights"))
    if all(run.keywords for run in runs):
        rows = {}
        for name, run in zip(names, runs, strict=True):
            rates = run.keywords.get("clean") if run.keywords else {}
            rows[name] = {key: rates[key] for key in (*keyword_names(rates)[:16], "avg")}
        found.append(_bars(logs[0], rows, "Keyword hit rate, clean", "percent", "rates"))
    return found


def _bars(source: Path, rows: Mapping[str, Mapping[str, float]], title: str, unit: str, name: str) -> Drawing:
    text = "; ".join(
        f"{run}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()) for run, row in rows.items()
    )
    return draw(source, _titled(plots.paired_bars, title, unit), rows, name, title, f"{text}.")


def _titled(maker: Any, title: str, unit: str) -> Any:
    return lambda content: maker(content, title, unit)


def _where_they_differ(
    eval_splits: Sequence[EvalSplit], names: Sequence[str], each: int
) -> tuple[Gallery, list[tuple[str, list[dict[str, Any]]]], dict[str, Any]]:
    """Return the utterances whose image has a much better rank in one run than in the other, by the ratio of the ranks.

    Returns:
        The pictures, (name of the better run, utterances) for both runs, and the recordings.
    """
    first, second = eval_splits
    if [u.id for u in first.utterances] != [u.id for u in second.utterances]:
        raise UserError("the two runs were scored on different utterances. Score both on the same split.")
    gallery, owner, everything = Gallery(first), first.utterance_image, np.arange(len(first.images))
    ranks = [first_hit_ranks(m.speech, m.images, owner, everything) for m in eval_splits]
    nearest = [top(m.speech, m.images, 1)[0][:, 0] for m in eval_splits]
    gain = np.log(ranks[1]) - np.log(ranks[0])  # positive: the rank in the first run is better
    audio: dict[int, str] = {}
    shown = []
    for better, order in enumerate((np.argsort(-gain, kind="stable"), np.argsort(gain, kind="stable"))):
        items: list[dict[str, Any]] = []
        for row in order[:each].tolist():
            if (gain[row] if better == 0 else -gain[row]) <= 0:
                break
            utterance, place = first.utterances[row], len(audio)
            audio[place] = audio_uri(load_audio(utterance.wav))
            items.append({
                "id": utterance.id, "caption": utterance.text, "audio": place, "truth": gallery.image(int(owner[row])),
                "runs": [(name, int(rank[row]), gallery.image(int(near[row])))
                         for name, rank, near in zip(names, ranks, nearest, strict=True)],
            })  # fmt: skip
        shown.append((names[better], items))
    return gallery, shown, {"audio": audio}
