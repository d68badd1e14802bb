"""Tables of retrieval scores."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from speechclip.report.results.assemble import Entry, assemble, entry, number, seedless
from speechclip.report.results.published import FAST_VGS
from speechclip.report.results.rows import RETRIEVAL as STEP
from speechclip.report.results.rows import ResultRow
from speechclip.report.runs import Scores
from speechclip.report.tables import Cell, Table

CUTOFFS = ("R@1", "R@5", "R@10")
CHANCE, TOPLINE = "*chance*", "*text→image topline*"
IMAGES = "Speech and images"
WER = "WER"
RECOGNISERS = (
    "A row 'asr' finds images with the transcripts of a recogniser through CLIP's text tower. WER: word error rate."
    " 'text_head' adds a small head over the text embeddings, trained on the training images. 'mean' is the mean of the"
    " frames with one linear layer."
)
WINDOWS = "In windows: the embedding of an utterance is the mean of the embeddings of its windows."
#: Title of a table, and its directions with their short names.
RETRIEVAL = {
    IMAGES: {"speech->image": "S→I", "image->speech": "I→S"},
    "Speech and captions, own caption": {"speech->text": "S→T", "text->speech": "T→S"},
    "Speech and captions, any caption of the image": {
        "speech->text (any caption)": "S→T",
        "text->speech (any caption)": "T→S",
    },
}
INTRODUCTION = """\
Recall in percent. S→I: a recording finds its image. I→S: an image finds any of its recordings. S→T and T→S: recordings
and written captions. "Coarse to fine": a reranker orders the best K candidates of each query again. No head is trained
on captions. The topline finds images by their true captions. Chance is exact. `results.jsonl` has the mean reciprocal
rank and 95% intervals over images."""


def retrieval_tables(rows: Sequence[ResultRow], titles: Sequence[str] = tuple(RETRIEVAL)) -> list[Table]:
    """Return a table for images and one for each protocol of captions. A table without rows is left out.

    Args:
        rows: the measurements.
        titles: the tables, of `RETRIEVAL`.
    """
    tables = []
    for title in titles:
        directions = RETRIEVAL[title]
        columns = [f"{short} {cutoff}" for short in directions.values() for cutoff in CUTOFFS]
        columns += ["mean R@10"] if title == IMAGES else []
        recognised = any("recognition" in row.scores.content for row in rows if row.step == STEP)
        columns += [WER] if title == IMAGES and recognised else []
        entries = [item for row in rows if row.step == STEP for item in _entries(row, directions, title == IMAGES)]
        if entries:
            notes = [RECOGNISERS] if WER in columns else []
            notes += [WINDOWS] if any("(in windows of" in item.head for item in entries) else []
            tables.append(assemble(title, " ".join(notes), columns, entries, digits=2))
    return tables


def branch_head(head: str, branch: str) -> str:
    """Return the name that tables use for a further branch of a head."""
    return f"{head} ({branch} branch)"


def coarse_head(head: str, scores: Scores) -> str:
    """Return the name of the row before reranking. A head with a reranker of its own says that it is coarse.

    The name of a fast_vgs head is that of its regions: only published regions make it a FaST-VGS.
    """
    content = scores.content.get("coarse_to_fine")
    if not isinstance(content, Mapping):
        return head
    if head == FAST_VGS:
        return str(content.get("name", head))
    return f"{head} (coarse)" if content.get("name") == head else head


def second_stage_scores(head: str, scores: Scores) -> Iterator[tuple[str, Scores]]:
    """Yield name and scores after reranking, if there are any. The name has the number of candidates."""
    content = scores.content.get("coarse_to_fine")
    if isinstance(content, Mapping):
        name = content.get("name", head)
        yield f"{name} (coarse to fine, K={content.get('top_k')})", Scores(scores.path, dict(content))


def branch_scores(head: str, scores: Scores) -> Iterator[tuple[str, Scores]]:
    """Yield name and scores of the further branches of a head."""
    content = scores.content.get("branches")
    for branch, part in content.items() if isinstance(content, Mapping) else ():
        yield branch_head(head, str(branch)), Scores(scores.path, part)


def window_scores(head: str, scores: Scores) -> Iterator[tuple[str, Scores]]:
    """Yield name and scores in windows, of each branch of a head. The name has the length of the windows."""
    content = scores.content.get("windows")
    if isinstance(content, Mapping):
        windows = Scores(scores.path, dict(content))
        for name, part in [(head, windows), *branch_scores(head, windows)]:
            yield f"{name} (in windows of {windows.number('seconds'):g} s)", part


def _entries(row: ResultRow, directions: Mapping[str, str], images: bool) -> Iterator[Entry]:
    scores = row.scores
    present = {name: short for name, short in directions.items() if images or name in scores.content}
    if not present:
        return
    further = [*window_scores(row.head, scores), *second_stage_scores(row.head, scores)] if images else []
    for head, part in [(coarse_head(row.head, scores), scores), *branch_scores(row.head, scores), *further]:
        cells = recalls(part, (), present)
        if images:
            cells["mean R@10"] = number(part.number("mean_R@10"), digits=2)
            if "recognition" in part.content:
                cells[WER] = number(part.number("recognition", "wer"), digits=2)
        yield entry(row, cells, head)
    if images and "text->image" in scores.content:
        yield seedless(row, recalls(scores, (), {"text->image": "S→I"}), TOPLINE)
    chance = recalls(scores, ("random",), present)
    if images:
        both = [scores.number("random", name, "R@10") for name in present]
        chance["mean R@10"] = number(statistics.mean(both), digits=2)
    yield seedless(row, chance, CHANCE)


def recalls(scores: Scores, path: tuple[str, ...], directions: Mapping[str, str]) -> dict[str, Cell]:
    """Return the cells of the directions that a mapping names and abbreviates."""
    return {
        f"{short} {cutoff}": number(scores.number(*path, name, cutoff), digits=2)
        for name, short in directions.items() for cutoff in CUTOFFS
    }  # fmt: skip
