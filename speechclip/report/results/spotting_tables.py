"""Tables of keyword spotting, one for each kind of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speechclip.report.results.assemble import Entry, assemble, entry, number, seedless
from speechclip.report.results.retrieval_tables import CHANCE
from speechclip.report.results.rows import SPOTTING, ResultRow
from speechclip.report.runs import Scores
from speechclip.report.tables import Cell, Table

INTRODUCTION = """\
Utterances are ranked by the score of a keyword. The scores are those of Kamper et al. 2017 and 2019, in percent,
averaged over the keywords: precision at 10 (P@10), precision at N, the number of utterances with the keyword (P@N), and
equal error rate (EER); and average precision (AP). An exact label says that the caption has the word, a semantic label
that the word fits.

* written: cosine of the utterance with CLIP's embedding of the keyword.
* spoken: cosine with the mean embedding of spoken examples of the keyword from the training set.
* attention: the largest cosine between a keyword that the head finds and the subwords of the keyword.

Chance is the expected score of a random order. Brackets: 95% intervals over keywords."""
SCORES = ("P@10", "P@N", "EER", "AP")
_TITLES = {"exact": "Keyword spotting, exact labels", "semantic": "Keyword spotting, semantic labels"}


def spotting_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Return a table for each kind of labels. A table without rows is left out."""
    tables = []
    for kind, title in _TITLES.items():
        entries = [item for row in rows if row.step == SPOTTING for item in _entries(row, kind)]
        if entries:
            tables.append(assemble(title, "", SCORES, entries))
    return tables


def _entries(row: ResultRow, kind: str) -> Iterator[Entry]:
    shown: list[dict[str, Cell]] = []
    for query, kinds in row.scores.content.items():
        if kind not in kinds:
            continue
        scores = Scores(row.scores.path, kinds[kind])
        yield entry(row, _cells(scores, ()), f"{row.head} ({query})")
        chance = _cells(scores, ("chance",))
        if chance not in shown:  # spoken keywords may be fewer
            yield seedless(row, chance, f"{CHANCE} ({query})" if shown else CHANCE)
            shown.append(chance)


def _cells(scores: Scores, path: tuple[str, ...]) -> dict[str, Cell]:
    intervals = scores.content.get("ci95", {}) if not path else {}
    return {name: number(scores.number(*path, name), intervals.get(name)) for name in SCORES}
