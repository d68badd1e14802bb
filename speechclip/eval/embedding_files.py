"""Retrieval scores of two files of embeddings, which may come from any program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.errors import UserError
from speechclip.data.embeddings import load_embeddings
from speechclip.data.kaldi import read_table
from speechclip.eval.retrieval import chance, evaluate

Source = tuple[Path, str]  # an .npz file, and a table "id group" or ""


def score_embedding_files(
    queries: Source, gallery: Source, n_bootstrap: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Score retrieval between two .npz files of embeddings in both directions, with intervals over groups and chance.

    In the direction "gallery->queries" only items with a relevant query item are used.

    Args:
        queries: the file and the table of its groups.
        gallery: the file and the table of its groups.
        n_bootstrap: number of resamples; 0 for no intervals.
        seed: seed of the resamples.
    Returns:
        the scores of "queries->gallery" and "gallery->queries", and their chance levels as "chance queries->gallery"
        and "chance gallery->queries".
    Raises:
        UserError: a file cannot be read, an id has no group, the dimensions differ, or a query has no relevant item.
    """
    (query_rows, query_names), (gallery_rows, gallery_names) = _load(*queries), _load(*gallery)
    if query_rows.shape[1] != gallery_rows.shape[1]:
        raise UserError(
            f"{gallery[0]}: {gallery_rows.shape[1]} dimensions, {queries[0]} has {query_rows.shape[1]}. "
            "Use embeddings of one joint space."
        )
    numbers = {name: at for at, name in enumerate(sorted({*query_names, *gallery_names}))}
    query_groups, gallery_groups = (
        np.array([numbers[name] for name in names]) for names in (query_names, gallery_names)
    )
    alone = np.flatnonzero(~np.isin(query_groups, gallery_groups))
    if len(alone):
        raise UserError(
            f"{gallery[0]}: no item of the group {query_names[alone[0]]}, which a query of {queries[0]} has"
            f" ({len(alone)} such queries). Check the groups."
        )
    answered = np.isin(gallery_groups, query_groups)
    directions = {
        "queries->gallery": (query_rows, gallery_rows, query_groups, gallery_groups),
        "gallery->queries": (gallery_rows[answered], query_rows, gallery_groups[answered], query_groups),
    }
    report: dict[str, dict[str, Any]] = {}
    for name, case in directions.items():
        report[name] = evaluate(*case, case[2], n_bootstrap, seed)
        report[f"chance {name}"] = {**chance(case[2], case[3]), "n_queries": len(case[2]), "n_gallery": len(case[3])}
    return report


def _load(path: Path, table: str) -> tuple[np.ndarray, list[str]]:
    """Return embeddings [N, D] and the group of each row."""
    ids, rows = load_embeddings(path)
    if not table:
        return rows, ids
    group_of = read_table(table)
    missing = [item for item in ids if item not in group_of]
    if missing:
        raise UserError(f"{table}: no group for {missing[0]} of {path} ({len(missing)} such ids). Add them.")
    return rows, [group_of[item] for item in ids]
