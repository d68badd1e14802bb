"""The few most important scores of a run, each with its interval and chance, for the start of a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from speechclip.report.page.tables import cell
from speechclip.report.runs import Run
from speechclip.report.tables import Cell

#: Direction, cutoff and text of the retrieval scores.
_RETRIEVAL = (
    ("speech->image", "R@1", "Speech finds its image first"),
    ("speech->image", "R@10", "Speech finds its image in the first 10"),
    ("image->speech", "R@10", "An image finds its speech in the first 10"),
)
_KEYWORDS = "Keywords whose nearest content subword is in the caption"
SCORE, CHANCE = "keyword hit rate, content_top1", "shuffled speech"


@dataclass(frozen=True)
class Headline:
    """A score in percent.

    Attributes:
        text: its meaning in words.
        name: its name in the tables.
        score: the score, with its interval.
        chance: chance, or the control that stands for it.
        chance_name: the name of the control.
    """

    text: str
    name: str
    score: Cell
    chance: Cell
    chance_name: str = "chance"


def headlines(run: Run) -> list[Headline]:
    """Return the most important scores of a run. A run without keywords lacks the last one."""
    return [*_retrieval(run), *_keywords(run)]


def _retrieval(run: Run) -> Iterator[Headline]:
    for direction, cutoff, text in _RETRIEVAL:
        value = run.retrieval.number(direction, cutoff)
        interval: Any = run.retrieval.get(direction).get("ci95", {}).get(cutoff)
        chance = cell(run.retrieval.number("random", direction, cutoff))
        yield Headline(text, f"{direction.replace('->', '→')} {cutoff}", cell(value, interval), chance)


def _keywords(run: Run) -> Iterator[Headline]:
    if run.keywords is None:
        return
    content = run.keywords.content
    interval = content.get("ci95", {}).get("content_top1", {}).get("avg")
    score = cell(run.keywords.number("content_top1", "avg"), interval)
    control = content.get("shuffled_speech", {}).get("content_top1", {}).get("avg")
    yield Headline(_KEYWORDS, SCORE, score, cell(control), CHANCE)
