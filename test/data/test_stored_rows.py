"""Embeddings that are mapped into memory: the same ids, rows and errors as those that are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechclip.common.errors import UserError
from speechclip.data import mapped_embeddings
from speechclip.data.embeddings import load_embeddings, save_embeddings
from speechclip.data.stored_rows import StoredRows, open_rows

IDS = [f"item {number}" for number in range(50)]
TABLE = np.random.default_rng(0).standard_normal((50, 7))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int8"])
def test_mapped_rows_equal_those_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:  # fmt: skip
    monkeypatch.setattr(mapped_embeddings, "_BYTES", 400)  # a few rows at a time
    path = tmp_path / "e.npz"
    np.savez(path, other=np.arange(5), ids=np.array(IDS), embeddings=(20 * TABLE).astype(kind))
    ids, wanted = load_embeddings(path)
    mapped_ids, mapped = open_rows(path)
    assert isinstance(mapped, StoredRows) and isinstance(mapped.table, np.memmap)
    assert mapped_ids == ids == IDS and mapped.shape == (50, 7)
    np.testing.assert_array_equal(mapped[:], wanted)
    np.testing.assert_array_equal(mapped[3:9], wanted[3:9])
    np.testing.assert_array_equal(mapped[np.array([4, 2, 49])], wanted[[4, 2, 49]])
    assert mapped[:].dtype == np.float32


def test_files_that_cannot_be_mapped_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "packed.npz", ids=np.array(IDS), embeddings=TABLE)
    np.savez(tmp_path / "columns.npz", ids=np.array(IDS), embeddings=np.asfortranarray(TABLE))
    for name in ("packed.npz", "columns.npz"):
        ids, table = open_rows(tmp_path / name)
        assert ids == IDS and isinstance(table, np.ndarray)
        np.testing.assert_array_equal(table, load_embeddings(tmp_path / name)[1])


def _changed_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.find(TABLE[20].astype(np.float32).tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"ids": np.array(["a", "a"]), "embeddings": np.eye(2)}, "duplicate ids"),
        ({"ids": np.array(["a"]), "embeddings": np.eye(2)}, r"1 ids for embeddings of shape \(2, 2\)"),
        ({"ids": np.array(["a", "b"]), "embeddings": np.diag([1, np.nan])}, "the embedding of b is zero or not finite"),
        ({"ids": np.array(["a", "b"]), "embeddings": np.diag([1, 0])}, "the embedding of b is zero or not finite"),
        ({"ids": np.array(["a", "b"])}, "needs the arrays ids and embeddings"),
        ({"ids": np.array(["a"]), "embeddings": np.array([["x"]])}, "the embeddings are not numbers"),
    ],
)
def test_mapping_refuses_what_reading_refuses(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "e.npz", **arrays)
    for read in (load_embeddings, open_rows):
        with pytest.raises(UserError, match=f"e.npz: {reason}"):
            read(tmp_path / "e.npz")


def test_mapping_verifies_the_checksum(tmp_path: Path) -> None:
    save_embeddings(tmp_path / "e.npz", IDS, TABLE)
    _changed_bit(tmp_path / "e.npz")
    with pytest.raises(UserError, match="e.npz: not a readable .npz file"):
        open_rows(tmp_path / "e.npz")
