"""Tables of vectors that are read block by block, and the memory that writing an index of them needs."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechclip.search import lists, write
from speechclip.search.index import VECTORS, ImageIndex, IndexInfo
from speechclip.search.items import Items
from speechclip.search.vectors import GatheredVectors, VectorWriter
from speechclip.search.write import Structure, write_index

ORIGIN = IndexInfo("", 0, 0, "test", "test", thumbnails=False)


class Virtual:
    """A table of unit vectors in clusters that is not in memory."""

    def __init__(self, count: int, dim: int) -> None:
        self.shape = (count, dim)
        self.largest = 0

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        numbers = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows
        self.largest = max(self.largest, len(numbers))
        angles = 1 + numbers[:, None] * np.linspace(0.1, 1, self.shape[1], dtype=np.float32)
        made = np.sin(angles, dtype=np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_gathered_vectors_come_from_their_tables() -> None:
    tables = [np.arange(12).reshape(4, 3).astype(np.float16), -np.arange(6).reshape(2, 3).astype(np.float32)]
    table, row = np.array([0, 1, 0, 1, 0], dtype=np.int8), np.array([3, 0, 0, 1, 1])
    gathered = GatheredVectors(tables, table, row, 3)
    wanted = np.stack([tables[number][place] for number, place in zip(table, row)])
    assert gathered.shape == (5, 3)
    np.testing.assert_array_equal(gathered[:], wanted)
    np.testing.assert_array_equal(gathered[1:3], wanted[1:3])
    np.testing.assert_array_equal(gathered[np.array([4, 0])], wanted[[4, 0]])
    assert gathered[:].dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vector_writer_writes_what_numpy_writes(tmp_path: Path, dtype: Any) -> None:
    table = np.random.default_rng(0).standard_normal((10, 4)).astype(dtype)
    np.save(tmp_path / "wanted.npy", table)
    with VectorWriter(tmp_path / "v.npy", table.shape, dtype) as writer:
        for start in (0, 4, 8):
            writer.append(table[start : start + 4].astype(np.float32))
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "wanted.npy").read_bytes()


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_index_is_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "ivf":
        pytest.importorskip("faiss", reason="extra 'search' is not installed")
    monkeypatch.setattr(write, "BLOCK", 1000)
    monkeypatch.setattr(lists, "PART_BYTES", 200_000)
    table = Virtual(20_000, 128)  # 10 MB in single precision
    items = Items([str(row) for row in range(20_000)])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    write_index(tmp_path, items, table, Structure(kind, lists=16, probes=16), ORIGIN)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert table.largest <= 16 * lists.TRAINING_VECTORS
    assert peak < 5e6, f"{peak / 1e6:.1f} MB"
    index = ImageIndex.open(tmp_path)
    assert np.load(tmp_path / VECTORS).shape == (20_000, 128)
    wanted = np.array([7, 12_345, 19_999])
    np.testing.assert_allclose(index.vectors[wanted], table[wanted], atol=1e-3)
    np.testing.assert_array_equal(index.search(table[wanted], 1)[0][:, 0], wanted)
