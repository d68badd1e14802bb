"""Answers and keywords as text, JSON, CSV or TextGrid."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.common.errors import UserError
from speechclip.common.files import replace_file
from speechclip.search.query import Answer, describe_keyword, plain_subword

if TYPE_CHECKING:
    from speechclip.api import Keyword

HIT_COLUMNS = ("query", "rank", "kind", "id", "cosine", "start", "end", "file", "duplicates", "duplicate_files")
KEYWORD_COLUMNS = ("recording", "start", "end", "subword", "cosine")
BETWEEN = " | "  # the values of one cell


def answer_record(query: str, answer: Answer) -> dict[str, Any]:
    """Return an answer for JSON, with the paths of its hits and of their duplicates."""
    record = {"query": query, **answer.as_dict()}
    for hit, entry in zip(answer.hits, record["results"], strict=True):
        entry["duplicate_files"] = [other.file for other in hit.duplicates]
    return record


def answers_as_csv(answers: Sequence[tuple[str, Answer]]) -> str:
    """Return the hits of answers as CSV, one line per hit."""
    rows = []
    for query, answer in answers:
        for hit in answer.hits:
            start, end = ("", "") if hit.span is None else (f"{second:.3f}" for second in hit.span)
            rows.append((
                query, hit.rank, hit.kind, hit.id, f"{hit.cosine:.4f}", start, end, hit.file,
                BETWEEN.join(other.id for other in hit.duplicates),
                BETWEEN.join(other.file for other in hit.duplicates),
            ))  # fmt: skip
    return _csv(HIT_COLUMNS, rows)


def export_answers(path: Path, answers: Sequence[tuple[str, Answer]]) -> None:
    """Write the hits of answers to a file: CSV or JSON, by its suffix.

    Raises:
        UserError: the suffix is neither.
    """
    check_export(path)
    if path.suffix.lower() == ".csv":
        text = answers_as_csv(answers)
    else:
        text = json.dumps([answer_record(query, answer) for query, answer in answers], indent=2) + "\n"
    replace_file(path, text.encode("utf-8", "surrogateescape"))


def check_export(path: Path) -> None:
    """Check the suffix of a file of hits.

    Raises:
        UserError: it is neither .json nor .csv.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise UserError(f"{path}: unknown format. Give a file that ends in .json or .csv.")


def keywords_as_text(name: str, words: Sequence[Keyword]) -> str:
    """Return the keywords of a recording as lines: the time span, then the nearest subwords with their cosines."""
    lines = [name]
    for word in words:
        near = ", ".join(f"{plain_subword(text)} {cosine:.2f}" for text, cosine in zip(word.subwords, word.cosines))
        lines.append(f"  {word.span[0]:6.2f} - {word.span[1]:6.2f} s  {near}")
    return "\n".join(lines) + "\n"


def keywords_as_json(name: str, words: Sequence[Keyword]) -> str:
    """Return the keywords of a recording as one line of JSON."""
    return json.dumps({"recording": name, "keywords": [describe_keyword(word) for word in words]}) + "\n"


def keywords_as_csv(found: Sequence[tuple[str, Sequence[Keyword]]]) -> str:
    """Return the keywords of recordings as CSV, one line per subword, the nearest first."""
    rows = [
        (name, f"{word.span[0]:.3f}", f"{word.span[1]:.3f}", plain_subword(subword), f"{cosine:.4f}")
        for name, words in found
        for word in words
        for subword, cosine in zip(word.subwords, word.cosines)
    ]
    return _csv(KEYWORD_COLUMNS, rows)


def keywords_as_textgrid(words: Sequence[Keyword], seconds: float) -> str:
    """Return the keywords of a recording as a Praat TextGrid in the long text format.

    Each keyword is an interval whose text is the nearest subword. The spans of keywords may overlap, and the intervals
    of a tier may not: a keyword is in the first tier ("keywords", "keywords 2", ...) where its span is free.

    Args:
        words: the keywords.
        seconds: length of the recording.
    """
    tiers: list[list[tuple[float, float, str]]] = [[]]
    for word in sorted(words, key=lambda one: one.span):
        start, end = max(0.0, word.span[0]), min(word.span[1], seconds)
        if end <= start:
            continue
        free = next((tier for tier in tiers if not tier or tier[-1][1] <= start), None)
        if free is None:
            free = []
            tiers.append(free)
        free.append((start, end, plain_subword(word.subwords[0]) if word.subwords else ""))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {seconds:.6g}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, tier in enumerate(tiers, start=1):
        intervals = _fill_gaps(tier, seconds)
        name = "keywords" if number == 1 else f"keywords {number}"
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {seconds:.6g}", f"        intervals: size = {len(intervals)}"]
        for at, (start, end, text) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{at}]:", f"            xmin = {start:.6g}", f"            xmax = {end:.6g}"]
            lines.append(f'            text = "{quoted}"')
    return "\n".join(lines) + "\n"


def _fill_gaps(tier: Sequence[tuple[float, float, str]], seconds: float) -> list[tuple[float, float, str]]:
    """Return intervals that cover a recording: those of a tier, and empty ones between them."""
    filled, at = [], 0.0
    for start, end, text in tier:
        if start > at:
            filled.append((at, start, ""))
        filled.append((start, end, text))
        at = end
    if at < seconds or not filled:
        filled.append((at, seconds, ""))
    return filled


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()
