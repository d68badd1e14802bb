"""Nearest neighbours: exact search against sorting, the inverted file against exact search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechclip.common.errors import UserError
from speechclip.search import lists, neighbours
from speechclip.search.lists import train_inverted_file, write_inverted_file
from speechclip.search.neighbours import InvertedFile, default_lists, default_probes, exact_search, read_inverted_file


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, seed: int, dim: int = 24) -> np.ndarray:
    """Unit vectors around 40 centres, as embeddings of images are: neighbours are in several lists."""
    centres = np.random.default_rng(0).standard_normal((40, dim))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(40, size=count)] + 1.5 * rng.standard_normal((count, dim)))


def in_blocks(vectors: np.ndarray, first: int = 0, size: int = 700) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and vectors, as an index is written."""
    for start in range(0, len(vectors), size):
        block = vectors[start : start + size]
        yield first + np.arange(start, start + len(block)), block


def build(folder: Path, vectors: np.ndarray, number: int, seed: int = 0) -> Any:
    """Write an inverted file and open it."""
    path = folder / "lists.faiss"
    write_inverted_file(train_inverted_file(vectors, number, seed), path, in_blocks(vectors), len(vectors))
    return read_inverted_file(path)


def test_exact_search_finds_the_nearest() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], dtype=np.float32)
    rows, cosines = exact_search(vectors, np.array([[1, 0], [0, 1]], dtype=np.float32), 3)
    assert rows.tolist() == [[0, 2, 1], [1, 2, 0]]
    np.testing.assert_allclose(cosines, [[1, 0.6, 0], [1, 0.8, 0]], atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 20), st.integers(0, 10_000))
def test_exact_search_is_a_stable_sort_for_any_block(count: int, top_k: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (count, 3)).astype(np.float16)  # small integers give many ties and no rounding
    queries = rng.integers(-2, 3, (4, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        rows, products = exact_search(vectors, queries, top_k)
    wanted = queries @ vectors.astype(np.float32).T
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(products, np.take_along_axis(wanted, order, axis=1))


def test_inverted_file_with_all_lists_is_exact(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors, queries = clustered(3000, 1), clustered(20, 2)
    searcher = InvertedFile(build(tmp_path, vectors, 30, 0), vectors, probes=30)
    rows, cosines = searcher.search(queries, 10)
    true_rows, true_cosines = exact_search(vectors, queries, 10)
    np.testing.assert_array_equal(rows, true_rows)  # the shortlist is ranked with the vectors themselves
    np.testing.assert_allclose(cosines, true_cosines, atol=1e-6)


def test_inverted_file_recall_grows_with_the_lists(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors, queries = clustered(6000, 1), clustered(100, 2)
    true = exact_search(vectors, queries, 10)[0]
    recall, index = [], build(tmp_path, vectors, 80)
    for probes in (1, 10, 40):
        found = InvertedFile(index, vectors, probes).search(queries, 10)[0]
        recall.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist())]))
    assert recall[0] < recall[1] < recall[2]
    assert recall[2] > 0.95


def test_inverted_file_depends_on_the_seed(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors, queries = clustered(2000, 1), clustered(10, 2)
    found = [InvertedFile(build(tmp_path, vectors, 40, seed), vectors, 2).search(queries, 5)[0] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_inverted_file_with_short_lists_finds_fewer(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors = unit(np.array([[1, 0], [0.9, 0.1], [-1, 0], [-1, 0.1], [-1, 0.2]]))
    rows, _ = InvertedFile(build(tmp_path, vectors, 2, 0), vectors, 1).search(vectors[:1], 4)
    assert rows.tolist() == [[0, 1]]


@pytest.mark.parametrize("lists", [0, 11])
def test_build_refuses_more_lists_than_vectors(lists: int) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    with pytest.raises(UserError, match=f"--lists: {lists} is not 1 to 10, the number of vectors"):
        train_inverted_file(clustered(10, 0), lists, seed=0)


def test_read_inverted_file_names_a_damaged_file(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    path = tmp_path / "lists.faiss"
    assert build(tmp_path, clustered(100, 0), 4).ntotal == 100
    whole = path.read_bytes()
    for size in (500, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"{path}: missing, damaged or truncated"):
            read_inverted_file(path)
    with pytest.raises(UserError, match="nothing: missing, damaged or truncated"):
        read_inverted_file(tmp_path / "nothing")


def test_build_without_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r'faiss is not installed. Install it with: tools/install.sh --extras "search"'):
        train_inverted_file(clustered(10, 0), 2, seed=0)


def test_default_lists_and_probes() -> None:
    assert [default_lists(count) for count in (1, 10_000, 1_000_000)] == [2, 200, 2000]
    assert [default_probes(lists) for lists in (1, 200, 2000)] == [1, 32, 101]


@pytest.mark.parametrize("part_bytes", [lists.PART_BYTES, 5000])
def test_lists_equal_those_of_faiss_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    faiss = pytest.importorskip("faiss", reason="extra 'search' is not installed")
    monkeypatch.setattr(lists, "PART_BYTES", part_bytes)  # 5000: many temporary files
    vectors = clustered(2000, 1)
    in_memory = train_inverted_file(vectors, 30, 0)
    for _, block in in_blocks(vectors):
        in_memory.add(block)
    faiss.write_index(in_memory, str(tmp_path / "wanted"))
    build(tmp_path, vectors, 30)
    assert (tmp_path / "lists.faiss").read_bytes() == (tmp_path / "wanted").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.faiss", "wanted"]


def test_lists_refuse_vectors_that_are_not_finite(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    index, vectors = train_inverted_file(clustered(100, 1), 4, 0), clustered(10, 2)
    vectors[3] = np.nan
    with pytest.raises(UserError, match="an embedding is not finite"):
        write_inverted_file(index, tmp_path / "lists.faiss", in_blocks(vectors), 10)


def test_lists_are_renumbered_removed_and_added(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    old, added = clustered(900, 1), clustered(60, 2)
    index = build(tmp_path, old, 20)
    kept = np.setdiff1d(np.arange(900), np.arange(0, 900, 7))
    new_rows = np.full(900, -1)
    new_rows[kept] = np.arange(60, 60 + len(kept))  # the added ones come first
    vectors = np.concatenate([added, old[kept]])
    write_inverted_file(index, tmp_path / "new", in_blocks(added, size=25), 60, new_rows)
    index = read_inverted_file(tmp_path / "new")
    assert index.ntotal == len(vectors)
    queries = clustered(20, 3)
    rows, cosines = InvertedFile(index, vectors, 20).search(queries, 10)
    wanted = exact_search(vectors, queries, 10)
    np.testing.assert_array_equal(rows, wanted[0])
    np.testing.assert_allclose(cosines, wanted[1], atol=1e-6)


def test_inverted_file_searches_a_range_of_rows(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors, queries = clustered(2000, 1), clustered(10, 2)
    index = InvertedFile(build(tmp_path, vectors, 30, 0), vectors, 30)
    for rows in (range(500), range(1990, 2000), range(700, 1700)):
        found, cosines = index.search(queries, 5, rows)
        wanted = exact_search(vectors[rows.start : rows.stop], queries, 5)
        np.testing.assert_array_equal(found, wanted[0] + rows.start)
        np.testing.assert_allclose(cosines, wanted[1], atol=1e-6)
