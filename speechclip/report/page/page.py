"""The page of one run: ``report/index.html`` in its folder, one file with everything inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

import speechclip
from speechclip.common.constants import SCORES
from speechclip.common.files import replace_file
from speechclip.eval.score_files import ATTENTION, KEYWORD_LINES, read_attention, read_keyword_lines
from speechclip.report.page.drawings import run_drawings, write_data_figures
from speechclip.report.page.eval_split import EvalSplit
from speechclip.report.page.examples import Example, examples
from speechclip.report.page.overview import headlines
from speechclip.report.page.projection import Plane, project
from speechclip.report.page.recordings import Recordings
from speechclip.report.page.tables import keyword_tables, retrieval_tables
from speechclip.report.page.viewer import Gallery, listed_rows, map_data, utterance_data
from speechclip.report.runs import Run


@dataclass(frozen=True)
class Limits:
    """The size of a page.

    Attributes:
        utterances: number of utterances in the list.
        recordings: number of recordings.
        examples: number of examples of every kind and direction.
        found: number of results per example.
    """

    utterances: int = 1000
    recordings: int = 200
    examples: int = 3
    found: int = 5


def write_page(
    run: Run, eval_split: EvalSplit, recipe: str, out: Path, limits: Limits | None = None,
    recordings: Recordings | None = None,
) -> Path:  # fmt: skip
    """Write the page of a run atomically.

    Args:
        run: the run.
        eval_split: the split that it was scored on.
        recipe: name of the recipe, for its published numbers.
        out: the page.
        limits: see there; None for the defaults.
        recordings: give the same object for several runs, so that each recording is read once.

    Returns:
        The page.

    Raises:
        UserError: a file is damaged or lacks a value.
    """
    settings = limits or Limits()
    plane = project(eval_split.speech, eval_split.images)
    write_data_figures(run, eval_split, plane)
    shown, data, heavy = _examples_and_utterances(run, eval_split, recordings or Recordings(), plane, settings)
    content = {
        "title": run.directory.resolve().name,
        "facts": facts(run, scores=False),
        "headlines": headlines(run),
        "pictured": (shown["there"]["typical"] or shown["there"]["best"])[0],
        "commands": commands(run),
        "retrieval_tables": retrieval_tables(run, recipe),
        "keyword_tables": keyword_tables(run, recipe),
        "drawings": run_drawings(run),
        "examples": shown,
        "plane": plane,
        "has_keywords": run.keywords is not None,
        "listed": len(data["utterances"]),
        "total": len(eval_split.utterances),
        "recordings": len(heavy["audio"]),
        "static": _figures(run.directory / "figures", out.parent),
    }
    return write_html(out, "run.html.j2", content, data=data, media=heavy)


def _figures(folder: Path, page: Path) -> list[tuple[str, str]]:
    """Return name and address of every figure in a folder. The address is relative to the folder of the page."""
    away = os.path.relpath(folder.resolve(), page.resolve())
    return [(path.name, quote(Path(away, path.name).as_posix())) for path in sorted(folder.glob("*.svg"))]


def facts(run: Run, scores: bool = True) -> list[tuple[str, str]]:
    """Return names and values for the header of a page: the model, its training, and perhaps its main scores."""
    named = [("model", run.model), ("head", run.head), ("tag", run.tag), ("seed", run.seed_text)]
    found = [(name, value) for name, value in named if value]
    found += [(line.name, f"{line.score.text} %") for line in headlines(run)[1:]] if scores else []
    training: Mapping[str, Any] = run.training.content if run.training else {}
    if isinstance(training.get("trained"), int):
        found.append(("trained parameters", f"{training['trained']:,}"))
    if isinstance(training.get("train_seconds"), int | float):
        found.append(("training", f"{training['train_seconds']:,.0f} s"))
    return found


def commands(run: Run) -> list[tuple[str, str, str]]:
    """Return step, commit and command of training, retrieval scores and keyword scores."""
    steps = [("training", run.training, ()), ("retrieval", run.retrieval, ("provenance",))]
    steps.append(("keywords", run.keywords, ("provenance",)))
    return [
        (name, str(scores.get(*path, "commit") or "unknown"), str(scores.get(*path, "command")))
        for name, scores, path in steps
        if scores
    ]


def write_html(out: Path, template: str, content: Mapping[str, Any], *, data: Any, media: Any) -> Path:
    """Render a template with its style and script inside, and write it atomically.

    Args:
        out: the page.
        template: file name of the template.
        content: variables of the template.
        data: data for the script, as JSON.
        media: data that is parsed only if it is needed, as JSON.

    Returns:
        The page.
    """
    import jinja2

    folder = files("speechclip.report.page") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("speechclip.report.page", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template(template).render(
        content,
        version=speechclip.__version__,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        data=embedded(data),
        media=embedded(media),
    )
    replace_file(out, text.encode())
    return out


def embedded(value: Any) -> str:
    """Return JSON that is safe inside a ``<script>`` element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _examples_and_utterances(
    run: Run, eval_split: EvalSplit, recordings: Recordings, plane: Plane, limits: Limits
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the examples for the template, and data and media for the script."""
    images = np.arange(len(eval_split.images))
    owner, asked = eval_split.utterance_image, np.unique(eval_split.utterance_image)
    there = examples(eval_split.speech, eval_split.images, owner, images, limits.examples, limits.found)
    back = examples(eval_split.images[asked], eval_split.speech, asked, owner, limits.examples, limits.found)
    shown_there = [example for kind in there.values() for example in kind]
    shown_back = [example for kind in back.values() for example in kind]
    needed = {example.query for example in shown_there}
    needed |= {row for example in shown_back for row in (*example.found, example.truth)}
    rows = listed_rows(len(eval_split.utterances), needed, limits.utterances)
    others = [row for row in rows if row not in needed]
    room = max(0, limits.recordings - len(needed))
    audible = needed | {others[int(at)] for at in np.linspace(0, len(others) - 1, min(room, len(others)))}
    ids = [eval_split.utterances[row].id for row in rows]
    scores = run.directory / SCORES
    keywords = read_keyword_lines(scores / KEYWORD_LINES, ids) if run.keywords else {}
    attention = read_attention(scores / ATTENTION) if run.keywords else {}
    gallery = Gallery(eval_split)
    listed, heavy = utterance_data(gallery, recordings, rows, audible, keywords, attention, plane)
    place_of = {row: place for place, row in enumerate(rows)}
    gallery_there = {
        kind: [_spoken_query(example, gallery, place_of, listed) for example in found] for kind, found in there.items()
    }
    gallery_back = {
        kind: [_pictured_query(example, gallery, place_of, listed, asked) for example in found]
        for kind, found in back.items()
    }
    pictures = gallery.pictures()
    heavy["images"] = [picture.pop("uri") for picture in pictures]
    data = {"utterances": listed, "images": pictures, "map": map_data(gallery, plane)}
    for kinds in (gallery_there, gallery_back):
        for found in kinds.values():
            for example in found:
                example["pictures"] = {number: pictures[number]["alt"] for number in example.pop("numbers")}
    return {"there": gallery_there, "back": gallery_back}, data, heavy


def _spoken_query(
    example: Example, gallery: Gallery, place_of: Mapping[int, int], listed: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return an utterance and the images that it found. Numbers are places in the lists of the page."""
    place = place_of[example.query]
    found = [
        {"image": gallery.image(row), "cosine": cosine, "rank": at, "right": row == example.truth}
        for at, (row, cosine) in enumerate(zip(example.found, example.cosines, strict=True), start=1)
    ]
    if example.truth not in example.found:
        truth = {"image": gallery.image(example.truth), "cosine": example.truth_cosine}
        found.append({**truth, "rank": example.rank, "right": True})
    return {
        "utterance": place, "caption": listed[place]["caption"], "id": listed[place]["id"], "rank": example.rank,
        "found": found, "numbers": [item["image"] for item in found],
    }  # fmt: skip


def _pictured_query(
    example: Example, gallery: Gallery, place_of: Mapping[int, int], listed: list[dict[str, Any]], asked: Any
) -> dict[str, Any]:
    """Return an image and the utterances that it found. Numbers are places in the lists of the page."""
    owner, row = gallery.eval_split.utterance_image, int(asked[example.query])
    rows = list(zip(example.found, example.cosines, range(1, len(example.found) + 1), strict=True))
    if example.truth not in example.found:
        rows.append((example.truth, example.truth_cosine, example.rank))
    found = [
        {"utterance": place_of[item], "cosine": cosine, "rank": rank, "right": bool(owner[item] == row),
         "caption": listed[place_of[item]]["caption"]}
        for item, cosine, rank in rows
    ]  # fmt: skip
    number = gallery.image(row)
    return {
        "image": number, "id": gallery.eval_split.image_ids[row], "rank": example.rank, "found": found,
        "numbers": [number],
    }  # fmt: skip
