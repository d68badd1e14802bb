"""Retrieval scores of embeddings in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.errors import UserError
from speechclip.data.embeddings import load_embeddings
from speechclip.data.kaldi import read_table
from speechclip.eval.retrieval import chance, evaluate

Source = tuple[Path, str]  # an .npz file, and a table of its ids' groups or ""


def score_files(queries: Source, gallery: Source, n_bootstrap: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Scores of "queries->gallery" and "gallery->queries" with intervals over groups, and the chance level of each.

    In the second direction only those items ask that have an answer; an unanswerable query of the first is an error.

    Raises:
        UserError: a file that cannot be read, an id without a group, two widths, or a query without an answer.
    """
    (asked, ask_groups), (searched, search_groups) = _load(*queries), _load(*gallery)
    if asked.shape[1] != searched.shape[1]:
        raise UserError(
            f"{gallery[0]}: embeddings of {searched.shape[1]} dimensions, {queries[0]} has {asked.shape[1]}"
        )
    numbers = {name: at for at, name in enumerate(sorted(set(ask_groups) | set(search_groups)))}
    ask, search = (np.array([numbers[name] for name in names]) for names in (ask_groups, search_groups))
    alone = np.flatnonzero(~np.isin(ask, search))
    if len(alone):
        raise UserError(
            f"{gallery[0]}: nothing for {ask_groups[alone[0]]} of {queries[0]}, nor for {len(alone) - 1} more"
        )
    back = np.isin(search, ask)
    directions = {
        "queries->gallery": (asked, searched, ask, search),
        "gallery->queries": (searched[back], asked, search[back], ask),
    }
    report: dict[str, dict[str, Any]] = {}
    for name, case in directions.items():
        report[name] = evaluate(*case, case[2], n_bootstrap, seed)
        report[f"chance {name}"] = {**chance(case[2], case[3]), "n_queries": len(case[2]), "n_gallery": len(case[3])}
    return report


def _load(path: Path, table: str) -> tuple[np.ndarray, list[str]]:
    """Embeddings [N, D] and the group of each."""
    ids, rows = load_embeddings(path)
    if not table:
        return rows, ids
    group_of = read_table(table)
    missing = [item for item in ids if item not in group_of]
    if missing:
        raise UserError(f"{table}: no group for {missing[0]} of {path}, nor for {len(missing) - 1} more")
    return rows, [group_of[item] for item in ids]
