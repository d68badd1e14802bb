"""Tables of retrieval for further test sets, such as the unseen test set of Places."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from speechclip.report.results.language_tables import language_tables
from speechclip.report.results.retrieval_tables import IMAGES, retrieval_tables
from speechclip.report.results.rows import RETRIEVAL, ResultRow
from speechclip.report.tables import Table

INTRODUCTION = """\
Recall in percent, as in the tables of retrieval, for the data directory in each title."""


def test_set_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Return the tables of images and of languages for each further test set."""
    tables = []
    for name in sorted({row.further_set for row in rows if row.further_set}):
        own = [dataclasses.replace(row, step=RETRIEVAL) for row in rows if row.further_set == name]
        for table in [*retrieval_tables(own, (IMAGES,)), *language_tables(own)]:
            tables.append(dataclasses.replace(table, title=f"{table.title}: {name}"))
    return tables
