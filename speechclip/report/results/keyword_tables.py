"""Tables of keyword scores, with the controls that do not use the speech."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from speechclip.report.results.assemble import Entry, assemble, entry, number
from speechclip.report.results.rows import KEYWORDS as STEP
from speechclip.report.results.rows import ResultRow
from speechclip.report.runs import Scores
from speechclip.report.tables import Cell, Table

Cells = dict[str, Cell]
Made = Iterator[tuple[str, Cells]]  # "" or the name of a control, and its cells

PRIOR, SHUFFLED, RANDOM, EVENLY = "*frequency prior*", "*shuffled speech*", "*random position*", "*evenly spaced*"
KEYWORD_COLUMNS = 16  # a head of more keywords shows the first ones and the mean of all
#: Title of a table of hit rates, and its score.
KEYWORDS = {
    "Keyword hit rate, clean": "clean",
    "Keyword hit rate, reference": "reference",
    "Keyword hit rate, content_top1": "content_top1",
}
#: Title of a table of hit rates by number of neighbours, and its section.
SWEEPS = {
    "Keyword hit rate by number of neighbours": "sweep",
    "Keyword hit rate by number of neighbours, reference": "reference_sweep",
}
FLAWS = "What the published code's flaws change, in points of the clean hit rate"
WORDS = "Keywords as words, and their times"
BOUNDARIES = "Keyword times as word boundaries"
_CONTROLS = ((PRIOR, "frequency_prior"), (SHUFFLED, "shuffled_speech"))
#: Column and combination of flaws.
_FLAWS = {
    "special tokens": "special_tokens", "quantised": "quantised", "misaligned": "misaligned",
    "special + quantised": "special_tokens+quantised", "all three": "special_tokens+quantised+misaligned",
}  # fmt: skip
#: Column, path of its number, and factor.
_WORDS: dict[str, tuple[tuple[str, ...], float]] = {
    "precision": (("words", "content", "precision"), 1), "recall": (("words", "content", "recall"), 1),
    "F1": (("words", "content", "f1"), 1), "whole F1": (("words", "content", "whole_f1"), 1),
    "cosine × 100": (("gold_cosine", "content", "avg"), 100),
    "duplicates": (("distinct", "content", "duplicates"), 1), "named": (("overlap", "named"), 1),
    "overlap": (("overlap", "overlap"), 1), "boundary F1": (("segmentation", "f1"), 1),
}  # fmt: skip
_BOUNDARIES = {
    "precision": "precision", "recall": "recall", "F1": "f1", "over-segmentation": "over_segmentation",
    "R-value": "r_value",
}  # fmt: skip
INTRODUCTION = """\
Hit rates are percentages of the utterances that have the keyword. avg is the percentage of all keywords.

* clean: one of the 5 subwords nearest to the keyword is in the caption.
* reference: the count of the published code. One of the 5 subwords nearest to the quantised keyword is in the gold set.
  Special tokens can be neighbours and are in the gold set.
* content_top1: the nearest content subword is in the caption. Stop words are ignored in both.
* Frequency prior: the most frequent subwords of the training captions replace the neighbours. It uses no speech.
* Shuffled speech: the run's keywords are scored against captions of other images.

The tables by number of neighbours give the hit rate of all keywords. "content" ignores stop words.

The table of flaws has three departures of the published code. Special tokens are neighbours and gold. The neighbours
are those of the quantised vector. The file of keywords has one caption for 8 utterances. "only special" is the
percentage of keywords that hit special tokens only.

The table of words ignores stop words. A keyword names the words that contain its nearest subword. It names one wrong
word if the caption has no such word.

* precision, recall, F1: of the distinct words. whole F1: a word is found only if all its subwords are named.
* cosine: to the nearest subword of the caption.
* duplicates: percentage of the keywords of an utterance that repeat another one.
* named: percentage of keywords whose word is spoken. overlap: percentage of these whose time overlaps the word. For
  the prior, the word is the most frequent one. Random position: the same spans at random positions.
* boundary F1: see the table of word boundaries. Evenly spaced: the same number of boundaries, evenly spaced.

The table of word boundaries uses segments for heads with integrate-and-fire, and spans that hold half of the attention
for the others. All starts and ends between the start of the first word and the end of the last word count.

Brackets: 95% intervals over images."""


def keyword_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Return all keyword tables. A table without rows is left out."""
    makers: dict[str, Callable[[Scores], Made]] = {
        **{title: _maker(_rates, score) for title, score in KEYWORDS.items()},
        **{title: _maker(_sweep, section) for title, section in SWEEPS.items()},
        FLAWS: _flaws, WORDS: _words, BOUNDARIES: _boundaries,
    }  # fmt: skip
    tables = []
    for title, maker in makers.items():
        entries: list[Entry] = []
        for row in rows:
            if row.step == STEP:
                made = ((kind, cells) for kind, cells in maker(row.scores) if cells)
                entries += (entry(row, cells, control_head(row.head, kind), bool(kind)) for kind, cells in made)
        if entries:
            tables.append(assemble(title, "", _columns(title, entries), entries))
    return tables


def control_head(head: str, control: str) -> str:
    """Return the name of the row of a head's control; the name of the head if the control is ""."""
    return f"{control} ({head})" if control else head


def _maker(maker: Callable[[Scores, str], Made], section: str) -> Callable[[Scores], Made]:
    return lambda scores: maker(scores, section)


def _columns(title: str, entries: Sequence[Entry]) -> list[str]:
    """Return the columns of a table that an entry has."""
    used = {name for item in entries for name in item.cells}
    if title in SWEEPS:
        return sorted(used, key=lambda name: ("content" in name, int(name.rpartition("=")[2])))
    if title in KEYWORDS:
        return sorted(used, key=lambda name: int(name[2:]) if name.startswith("kw") else KEYWORD_COLUMNS + 1)
    known = {FLAWS: ("clean", *_FLAWS, "only special"), WORDS: _WORDS, BOUNDARIES: _BOUNDARIES}[title]
    return [name for name in known if name in used]


def _rates(scores: Scores, score: str) -> Made:
    yield "", _keywords(scores, score)
    for control, key in _CONTROLS:
        if key in scores.content:
            yield control, _keywords(scores, key, score)


def _keywords(scores: Scores, *path: str) -> Cells:
    names = [name for name in scores.get(*path) if re.fullmatch(r"kw\d+", name)]
    shown = [name for name in names if int(name[2:]) <= KEYWORD_COLUMNS]
    return {name: number(scores.number(*path, name)) for name in (*shown, "avg")}


def _sweep(scores: Scores, section: str) -> Made:
    rows = [
        (f"{'' if kind == 'all' else kind + ' '}K={k}", row)
        for kind, ks in scores.content.get(section, {}).items() for k, row in ks.items()
    ]  # fmt: skip
    yield "", {name: _cell(row, "avg") for name, row in rows}
    for control, key in _CONTROLS:
        yield control, {name: number(row[key]["avg"]) for name, row in rows if key in row}


def _flaws(scores: Scores) -> Made:
    if "flaws" not in scores.content:
        return
    flaws = scores.get("flaws")
    cells = {"clean": _cell(flaws["clean"], "avg")}
    for name, key in _FLAWS.items():
        difference = flaws[key]["difference"]
        cells[name] = number(difference["avg"], difference.get("ci95"), signed=True)
    yield "", {**cells, "only special": number(flaws["special_tokens"]["only_special"])}
    for control, row in _CONTROLS:
        if row in flaws["clean"]:
            clean = flaws["clean"][row]["avg"]
            changes = {name: number(flaws[key][row]["avg"] - clean, signed=True) for name, key in _FLAWS.items()}
            yield control, {"clean": number(clean), **changes}


def _words(scores: Scores) -> Made:
    """Make the row of the run, its two controls, and the controls of times."""
    content = scores.content
    if "words" not in content:
        return
    present = {name: (path, factor) for name, (path, factor) in _WORDS.items() if path[0] in content}
    yield "", {name: _cell(scores.get(*path[:-1]), path[-1], factor) for name, (path, factor) in present.items()}
    for control, key in _CONTROLS:
        cells = {}
        for name, (path, factor) in present.items():
            row = scores.get(*path[:-1]).get(key, {})
            if path[-1] in row:
                cells[name] = _cell(row, path[-1], factor)
        yield control, cells
    if "overlap" in content:
        yield RANDOM, {"overlap": number(scores.number("overlap", "random_position", "overlap"))}
    if "segmentation" in content:
        yield EVENLY, {"boundary F1": number(scores.number("segmentation", "uniform", "f1"))}


def _boundaries(scores: Scores) -> Made:
    if "segmentation" not in scores.content:
        return
    for control, path in (("", ()), (EVENLY, ("uniform",))):
        yield control, {title: number(scores.number("segmentation", *path, key)) for title, key in _BOUNDARIES.items()}


def _cell(row: Mapping[str, Any], key: str, factor: float = 1) -> Cell:
    """Return a cell of a number, with its interval if it has one."""
    interval = row.get("ci95", {}).get(key)
    return number(factor * row[key], [factor * end for end in interval] if interval else None)
