"""Rows of a run's keyword scores, beside what answers without its speech."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from speechclip.report.runs import Run, Scores

Row = dict[str, str]

PRIOR, SHUFFLED, ANYWHERE, EVENLY = "*frequency prior*", "*shuffled speech*", "*random position*", "*evenly spaced*"
CONTROLS = (PRIOR, SHUFFLED, ANYWHERE, EVENLY)  # of a run: the prior too, which has its keywords' numbers and times
KEYWORD_COLUMNS = 16  # a head of more keywords shows the first ones and its mean
#: Title of a table of hit rates, and its score.
KEYWORDS = {
    "Keyword hit rate, clean": "clean",
    "Keyword hit rate, reference": "reference",
    "Keyword hit rate, content_top1": "content_top1",
}
SWEEP, REFERENCE_SWEEP, FLAWS, PLACES = (
    "Keyword hit rate by number of neighbours",
    "Keyword hit rate by number of neighbours, reference",
    "What the published code's flaws change, in points of the clean hit rate",
    "Keywords as words, and where they are said",
)
TITLES = (*KEYWORDS, SWEEP, REFERENCE_SWEEP, FLAWS, PLACES)
SWEEPS = {SWEEP: "sweep", REFERENCE_SWEEP: "reference_sweep"}  # where a table's numbers stand
#: Column and combination of flaws.
_FLAWS = {
    "special tokens": "special_tokens", "quantised": "quantised", "misaligned": "misaligned",
    "special + quantised": "special_tokens+quantised", "all three": "special_tokens+quantised+misaligned",
}  # fmt: skip
#: Column, where its number stands, and the factor it is shown with.
_PLACES: dict[str, tuple[tuple[str, ...], float]] = {
    "precision": (("words", "content", "precision"), 1), "recall": (("words", "content", "recall"), 1),
    "F1": (("words", "content", "f1"), 1), "whole F1": (("words", "content", "whole_f1"), 1),
    "cosine × 100": (("gold_cosine", "content", "avg"), 100),
    "duplicates": (("distinct", "content", "duplicates"), 1), "named": (("overlap", "named"), 1),
    "overlap": (("overlap", "overlap"), 1), "boundary F1": (("segmentation", "f1"), 1),
}  # fmt: skip
INTRODUCTION = """\
Percent of utterances that have the keyword, avg: percent of all keywords. clean: one of the 5 subwords nearest to the
keyword is in the caption. reference: one of the 5 around the quantised keyword is, with special tokens among the
neighbours and in the gold set, as the published code counts. content_top1: the nearest content subword is in the
caption, stop words ignored on both sides. The prior answers with the most frequent subwords of the training captions,
without any speech; shuffled speech is what the run's keywords score against captions of other images. By number of
neighbours: of all keywords, as clean or as reference counts, "content" with stop words ignored. Flaws of the published
code: special tokens among neighbours and gold (only special: hit by nothing that is said), neighbours of the quantised
vector, and the captions of its dump, one for each 8 utterances. Words, stop words left out: a keyword names the words
that its nearest subword is part of, or else one that is not in the caption; precision, recall and F1 of the different
words named; whole F1: found only when all subwords of a word are named; cosine: to the nearest subword of the caption;
duplicates: of the keywords of an utterance; named: keywords whose word is spoken; overlap: those of them whose time
overlaps the word (prior: the most frequent word at the keywords' times; random position: the same spans anywhere in the
utterance; evenly spaced: as many boundaries). Brackets: 95% intervals over images."""


def keyword_rows_of(title: str) -> Callable[[Run], Iterator[Row]]:
    """A maker of the rows of one keyword table: the run's, and those of its controls."""

    def rows(run: Run) -> Iterator[Row]:
        scores = run.keywords
        if scores is None:
            return
        if title in KEYWORDS:
            made = _rates(scores, KEYWORDS[title])
        elif title in SWEEPS:
            made = _sweep(scores, SWEEPS[title])
        else:
            made = _flaws(scores) if title == FLAWS else _places(scores)
        for kind, row in made:
            if row:
                yield {**named(run, kind), **row}

    return rows


def named(run: Run, kind: str = "") -> Row:
    """What names a row of a run; of a control, its kind and the head."""
    head = f"{kind} ({run.head})" if kind else run.head
    values = {"model": run.model, "head": head, "tag": run.tag, "seed": run.seed_text}
    return {name: value for name, value in values.items() if value}


def columns_of(title: str, rows: Iterable[Row]) -> list[str]:
    """The columns of a keyword table behind those that name the row."""
    found = {name for row in rows for name in row}
    if title == FLAWS:
        return [name for name in ("clean", *_FLAWS, "only special") if name in found]
    if title == PLACES:
        return [name for name in _PLACES if name in found]
    if title in SWEEPS:
        return sorted(
            (name for name in found if re.fullmatch(r"(content )?K=\d+", name)),
            key=lambda name: ("content" in name, int(name.rpartition("=")[2])),
        )
    numbers = {int(name[2:]) for name in found if re.fullmatch(r"kw\d+", name)}
    return [*(f"kw{number}" for number in sorted(numbers)), "avg"]


def _rates(scores: Scores, score: str) -> Iterator[tuple[str, Row]]:
    yield "", _keywords(scores, score)
    yield PRIOR, _keywords(scores, "frequency_prior", score)
    if "shuffled_speech" in scores.content:
        yield SHUFFLED, _keywords(scores, "shuffled_speech", score)


def _keywords(scores: Scores, *path: str) -> Row:
    names = [name for name in scores.get(*path) if re.fullmatch(r"kw\d+", name)]
    shown = [name for name in names if int(name[2:]) <= KEYWORD_COLUMNS]
    return {name: f"{scores.number(*path, name):.1f}" for name in (*shown, "avg")}


def _sweep(scores: Scores, section: str) -> Iterator[tuple[str, Row]]:
    if section not in scores.content:
        return
    cells = [
        (f"{'' if kind == 'all' else kind + ' '}K={k}", cell)
        for kind, ks in scores.get(section).items() for k, cell in ks.items()
    ]  # fmt: skip
    yield "", {name: _cell(cell, "avg") for name, cell in cells}
    for kind, key in ((PRIOR, "frequency_prior"), (SHUFFLED, "shuffled_speech")):
        yield kind, {name: f"{cell[key]['avg']:.1f}" for name, cell in cells if key in cell}


def _flaws(scores: Scores) -> Iterator[tuple[str, Row]]:
    if "flaws" not in scores.content:
        return
    table = scores.get("flaws")
    row = {"clean": _cell(table["clean"], "avg")}
    for name, key in _FLAWS.items():
        difference = table[key]["difference"]
        row[name] = _signed(difference["avg"], difference.get("ci95"))
    yield "", {**row, "only special": f"{table['special_tokens']['only_special']:.1f}"}
    for kind, beside in ((PRIOR, "frequency_prior"), (SHUFFLED, "shuffled_speech")):
        if beside in table["clean"]:
            clean = table["clean"][beside]["avg"]
            changes = {name: _signed(table[key][beside]["avg"] - clean) for name, key in _FLAWS.items()}
            yield kind, {"clean": f"{clean:.1f}", **changes}


def _places(scores: Scores) -> Iterator[tuple[str, Row]]:
    """The run, its two controls, and for times what a random place and even spacing give."""
    content = scores.content
    if "words" not in content:
        return
    sections = [kind for kind in ("words", "gold_cosine", "distinct", "overlap", "segmentation") if kind in content]
    present = {
        name: (path, factor)
        for name, (path, factor) in _PLACES.items()
        if path[0] in sections and path[-1] in scores.get(*path[:-1])  # older versions knew no whole F1
    }
    yield "", {name: _cell(scores.get(*path[:-1]), path[-1], factor) for name, (path, factor) in present.items()}
    for kind, beside in ((PRIOR, "frequency_prior"), (SHUFFLED, "shuffled_speech")):
        found = {name: (scores.get(*path[:-1]).get(beside, {}), path[-1], f) for name, (path, f) in present.items()}
        yield kind, {name: _cell(*cell) for name, cell in found.items() if cell[1] in cell[0]}
    if "overlap" in content:
        yield ANYWHERE, {"overlap": f"{scores.number('overlap', 'random_position', 'overlap'):.1f}"}
    if "segmentation" in content:
        yield EVENLY, {"boundary F1": f"{scores.number('segmentation', 'uniform', 'f1'):.1f}"}


def _cell(row: Mapping[str, Any], key: str, factor: float = 1) -> str:
    """A number, with its interval where it has one."""
    interval = row.get("ci95", {}).get(key)
    text = f"{factor * row[key]:.1f}"
    return f"{text} [{factor * interval[0]:.1f}, {factor * interval[1]:.1f}]" if interval else text


def _signed(value: float, interval: list[float] | None = None) -> str:
    return f"{value:+.1f}" + (f" [{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else "")
