"""Write the vectors, the items and the lists of an index."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speechclip.common.files import write_json
from speechclip.common.provenance import provenance
from speechclip.search.index import EXACT, INFO, INVERTED, LISTS, VECTORS, IndexInfo, read_info
from speechclip.search.items import ITEMS, Items
from speechclip.search.lists import train_inverted_file, write_inverted_file
from speechclip.search.neighbours import BLOCK, EXACT_UP_TO, default_lists, default_probes, read_inverted_file
from speechclip.search.vectors import VectorWriter

if TYPE_CHECKING:
    from speechclip.search.neighbours import Floats, Rows
    from speechclip.search.vectors import VectorTable


@dataclasses.dataclass(frozen=True)
class Structure:
    """The structure of an index.

    Attributes:
        kind: "exact", "ivf", or "auto", which depends on the number of images.
        lists: number of lists of ivf; 0 for the default.
        probes: number of lists that a query searches; 0 for the default.
        seed: seed of the k-means that finds the lists.
    """

    kind: str = "auto"
    lists: int = 0
    probes: int = 0
    seed: int = 0


DEFAULT_STRUCTURE = Structure()


class Reused(NamedTuple):
    """The index before an update.

    Attributes:
        folder: its folder.
        old_rows: for each row of the new index, its row in the one before, [N]; -1 for new vectors.
    """

    folder: Path
    old_rows: NDArray[np.int64]


def write_index(
    folder: Path, items: Items, vectors: VectorTable, structure: Structure, info: IndexInfo,
    old: Reused | None = None,
) -> IndexInfo:  # fmt: skip
    """Write all files of an index except the thumbnails and the sources into an existing folder.

    The vectors are read once, block by block, and a sample of them is read before that for k-means.

    Args:
        folder: the folder.
        items: the items.
        vectors: [N, D], L2-normalised.
        structure: the structure of the index.
        info: its joint space, model, thumbnails and number of files that are not indexed; the rest is filled in.
        old: the index before, whose lists are used again if they still fit.
    """
    count, dim = vectors.shape
    kind = structure.kind if structure.kind != "auto" else EXACT if count <= EXACT_UP_TO else INVERTED
    lists = probes = 0
    with VectorWriter(folder / VECTORS, (count, dim), np.float32 if kind == EXACT else np.float16) as stored:
        if kind == EXACT:
            for _ in _store(vectors, stored):
                pass
        else:
            lists = _write_lists(folder / LISTS, vectors, stored, structure, old)
            probes = min(structure.probes or default_probes(lists), lists)
    write_json(folder / ITEMS, items.as_dict(), compact=True)
    info = dataclasses.replace(
        info, kind=kind, count=count, dim=dim, lists=lists, probes=probes, recordings=len(items.spans),
        provenance=provenance(command=None, seed=structure.seed, data=[]),
    )  # fmt: skip
    save_info(folder, info)
    return info


def _store(vectors: VectorTable, stored: VectorWriter) -> Iterator[tuple[Rows, Floats]]:
    """Write all vectors, and yield the rows and vectors of each block."""
    for start in range(0, vectors.shape[0], BLOCK):
        block = np.ascontiguousarray(vectors[start : start + BLOCK], dtype=np.float32)
        stored.append(block)
        yield np.arange(start, start + len(block)), block


def _write_lists(
    path: Path, vectors: VectorTable, stored: VectorWriter, structure: Structure, old: Reused | None
) -> int:
    """Write the vectors and the inverted file. Return the number of lists."""
    count = vectors.shape[0]
    blocks = _store(vectors, stored)
    index = _reusable_lists(count, structure, old) if old is not None else None
    if old is None or index is None:
        index = train_inverted_file(vectors, structure.lists or default_lists(count), structure.seed)
        write_inverted_file(index, path, blocks, count)
        return int(index.nlist)
    new_rows = np.full(index.ntotal, -1, dtype=np.int64)
    kept = np.flatnonzero(old.old_rows >= 0)
    new_rows[old.old_rows[kept]] = kept
    added = old.old_rows < 0
    new = ((rows[added[rows]], block[added[rows]]) for rows, block in blocks)
    write_inverted_file(index, path, (one for one in new if len(one[0])), int(added.sum()), new_rows)
    return int(index.nlist)


def _reusable_lists(count: int, structure: Structure, old: Reused) -> Any | None:
    """Return the inverted file of the index before, None if its lists do not fit ``count`` vectors.

    They fit if their number is the wanted one, or if the number of vectors is at most doubled or halved.
    """
    before = read_info(old.folder)
    if before.kind != INVERTED:
        return None
    wanted, ratio = structure.lists or default_lists(count), math.sqrt(2)
    if wanted != before.lists and (structure.lists or not 1 / ratio <= wanted / before.lists <= ratio):
        return None
    return read_inverted_file(old.folder / LISTS)


def save_info(folder: Path, info: IndexInfo) -> None:
    """Write ``index.json``."""
    write_json(folder / INFO, dataclasses.asdict(info))
