"""Paired tests as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Test = Mapping[str, Any]  # see speechclip.eval.significance.paired_scores


def paired_lines(retrieval: Mapping[str, Mapping[str, Test]], keywords: Mapping[str, Test]) -> Iterator[str]:
    """Yield a heading and a line of at most 80 columns for each score.

    Args:
        retrieval: tests by direction and score.
        keywords: tests by score. Cosines have three digits.
    """
    yield f"{'score':31}{'first':>7}{'second':>7}{'diff':>7}{'95% interval':>18}{'p':>8}"
    named = {f"{direction} {score}": row for direction, table in retrieval.items() for score, row in table.items()}
    for name, row in {**named, **keywords}.items():
        digits = 3 if "cosine" in name else 2
        numbers = "".join(f"{row[key]:7.{digits}f}" for key in ("first", "second", "difference"))
        ends = ", ".join(f"{end:.{digits}f}" for end in row["ci95"])
        yield f"{name:31}{numbers}{f'[{ends}]':>18}{row['p']:8.4f}"
