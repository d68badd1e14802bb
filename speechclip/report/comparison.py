"""The page of two runs side by side: scores, the significance of their differences, curves, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.errors import UserError
from speechclip.eval.ranking import first_hit_ranks
from speechclip.eval.significance import compare_runs, paired_means
from speechclip.report import figures, plots
from speechclip.report.drawings import Drawing, draw
from speechclip.report.examples import top
from speechclip.report.material import Material
from speechclip.report.media import audio_uri
from speechclip.report.page import commands, facts, write_html
from speechclip.report.runs import Run
from speechclip.report.tables import CONTROL, OWN, Cell, PageTable, Row, cell, keyword_names
from speechclip.report.viewer import Gallery

Tests = Mapping[str, Mapping[str, Mapping[str, float]]]
CLEAR = 0.05  # p below this is marked


def paired_tests(runs: Sequence[Run], permutations: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Direction -> score -> first, second, difference and p of two runs: see `significance.compare_runs`."""
    first, second = (run.directory / "scores" / "ranks.npz" for run in runs)
    return compare_runs(first, second, n=permutations, seed=seed)


def keyword_test(runs: Sequence[Run], image_of: Mapping[str, str], permutations: int, seed: int) -> dict[str, float]:
    """The share of an utterance's keywords that hit (clean), paired over the utterances in which both have keywords.

    Empty where a run has no keywords or its stage 5 did not say which of them hit.
    """
    shares = [_hit_shares(run) for run in runs]
    both = sorted(set(shares[0]) & set(shares[1]) & set(image_of))
    if not both:
        return {}
    first, second = ([share[name] for name in both] for share in shares)
    return paired_means(first, second, [image_of[name] for name in both], permutations, seed)


def write_comparison(
    runs: Sequence[Run], materials: Sequence[Material], tests: Tests, keywords: Mapping[str, float], out: Path,
    each: int = 4, permutations: int = 10000,
) -> Path:  # fmt: skip
    """Write the page of two runs. materials: of the same split, with each run's speech. tests, keywords: see above."""
    names = run_names(runs)
    gallery, shown, heavy = _where_they_differ(materials, names, each)
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
    """What to call two runs: their folders, with as much of what is above as tells them apart."""
    folders = [run.directory.resolve() for run in runs]
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if names[0] != names[1]:
            return names
    raise UserError(f"{runs[0].directory}: compared with itself")


def significance_tables(runs: Sequence[Run], names: Sequence[str], tests: Tests) -> list[PageTable]:
    """A table for every direction: the scores of both runs with intervals, their difference and its p-value."""
    tables = []
    for direction, scores in tests.items():
        rows = [run.retrieval.content.get(direction, {}).get("ci95", {}) for run in runs]
        table = PageTable(direction.replace("->", " → "), "Percent.", [*names, "difference", "p"])
        for score, row in scores.items():
            cells = [cell(row[key], interval.get(score)) for key, interval in zip(("first", "second"), rows)]
            table.rows.append(Row(score, [*cells, *_difference(row)], OWN if row["p"] < CLEAR else CONTROL))
        tables.append(table)
    return tables


def _difference(row: Mapping[str, float]) -> list[Cell]:
    """The difference in points, and p."""
    return [Cell(f"{row['difference']:+.1f}"), Cell(f"{row['p']:.4f}")]


def _keyword_tables(runs: Sequence[Run], names: Sequence[str], test: Mapping[str, float]) -> Iterator[PageTable]:
    if any(run.keywords is None for run in runs):
        return
    table = PageTable("Keywords", "Percent of all keywords that hit, with 95% intervals where there are any.", names)
    for score in ("clean", "reference", "content_top1"):
        cells = []
        for run in runs:
            assert run.keywords is not None
            interval = run.keywords.content.get("ci95", {}).get(score, {}).get("avg")
            cells.append(cell(run.keywords.number(score, "avg"), interval))
        table.rows.append(Row(score, cells))
    yield table
    if test:
        note = "Mean share of an utterance's keywords with one of the 5 nearest subwords in the caption, percent."
        table = PageTable("Keywords that hit", note, [*names, "difference", "p"])
        cells = [cell(test["first"]), cell(test["second"]), *_difference(test)]
        table.rows.append(Row("share that hits", cells, OWN if test["p"] < CLEAR else CONTROL))
        yield table


def _hit_shares(run: Run) -> dict[str, float]:
    """The share of every utterance's keywords that hit, where stage 5 wrote it."""
    path = run.directory / "scores" / "keywords.jsonl"
    if run.keywords is None or not path.exists():
        return {}
    hits: dict[str, list[bool]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "hit" in record:
            hits.setdefault(record["utterance"], []).append(bool(record["hit"]))
    return {name: sum(found) / len(found) for name, found in hits.items()}


def _drawings(runs: Sequence[Run], names: Sequence[str]) -> list[Drawing]:
    """Training curves, layer weights and keyword hit rates of both, those that both have."""
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
    materials: Sequence[Material], names: Sequence[str], each: int
) -> tuple[Gallery, list[tuple[str, list[dict[str, Any]]]], dict[str, Any]]:
    """The utterances whose image one run places much better than the other, by the ratio of the ranks."""
    first, second = materials
    if [u.id for u in first.utterances] != [u.id for u in second.utterances]:
        raise UserError("the two runs were scored on other utterances")
    gallery, owner, everything = Gallery(first), first.utterance_image, np.arange(len(first.images))
    ranks = [first_hit_ranks(m.speech, m.images, owner, everything) for m in materials]
    nearest = [top(m.speech, m.images, 1)[0][:, 0] for m in materials]
    gain = np.log(ranks[1]) - np.log(ranks[0])  # positive: the first places it better
    audio: dict[int, str] = {}
    shown = []
    for better, order in enumerate((np.argsort(-gain, kind="stable"), np.argsort(gain, kind="stable"))):
        items: list[dict[str, Any]] = []
        for row in order[:each].tolist():
            if (gain[row] if better == 0 else -gain[row]) <= 0:
                break
            utterance, place = first.utterances[row], len(audio)
            audio[place] = audio_uri(gallery.wave(row))
            items.append({
                "id": utterance.id, "caption": utterance.text, "audio": place, "truth": gallery.image(int(owner[row])),
                "runs": [(name, int(rank[row]), gallery.image(int(near[row])))
                         for name, rank, near in zip(names, ranks, nearest, strict=True)],
            })  # fmt: skip
        shown.append((names[better], items))
    return gallery, shown, {"audio": audio}
