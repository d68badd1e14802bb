"""Tables of retrieval by language, and across languages."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from speechclip.eval.languages import ACROSS, LANGUAGES
from speechclip.report.results.assemble import Entry, assemble, entry, number, seedless
from speechclip.report.results.retrieval_tables import CHANCE, CUTOFFS, IMAGES, RETRIEVAL, TOPLINE, recalls
from speechclip.report.results.rows import RETRIEVAL as STEP
from speechclip.report.results.rows import ResultRow
from speechclip.report.runs import Scores
from speechclip.report.tables import Table

INTRODUCTION = """\
Recall in percent, of one head for all languages. Each language is scored alone, with all images. Across languages, a
recording finds the recordings of the same image in the other language. Only images connect them. Chance is exact."""
_BY_LANGUAGE, _ACROSS = "Speech and images, by language", "Speech to speech in another language"


def language_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Return both tables, or nothing if no run was scored in several languages."""
    scored = [row for row in rows if row.step == STEP and isinstance(row.scores.content.get(LANGUAGES), Mapping)]
    if not scored:
        return []
    columns = [f"{short} {cutoff}" for short in RETRIEVAL[IMAGES].values() for cutoff in CUTOFFS]
    tables = [
        assemble(_BY_LANGUAGE, "", [*columns, "mean R@10"], [item for row in scored for item in _each(row)], digits=2)
    ]
    across = [item for row in scored for item in _across(row)]
    return [*tables, assemble(_ACROSS, "", [*CUTOFFS, "MRR"], across, digits=2)] if across else tables


def _each(row: ResultRow) -> Iterator[Entry]:
    directions = RETRIEVAL[IMAGES]
    for language, content in row.scores.content[LANGUAGES].items():
        scores = Scores(row.scores.path, content)
        cells = recalls(scores, (), directions)
        yield entry(
            row, {**cells, "mean R@10": number(scores.number("mean_R@10"), digits=2)}, f"{row.head} ({language})"
        )
        if "text->image" in content:
            yield seedless(row, recalls(scores, (), {"text->image": "S→I"}), f"{TOPLINE} ({language})")
        both = [scores.number("random", name, "R@10") for name in directions]
        chance = {**recalls(scores, ("random",), directions), "mean R@10": number(statistics.mean(both), digits=2)}
        yield seedless(row, chance, f"{CHANCE} ({language})")


def _across(row: ResultRow) -> Iterator[Entry]:
    for pair, content in row.scores.content.get(ACROSS, {}).items():
        scores, name = Scores(row.scores.path, content), pair.replace("->", " → ")
        measured, chance = (
            {key: number(scores.number(*path, key), digits=2) for key in (*CUTOFFS, "MRR")}
            for path in ((), ("random",))
        )
        yield entry(row, measured, f"{row.head} ({name})")
        yield seedless(row, chance, f"{CHANCE} ({name})")
