"""Nearest neighbours: exact search against sorting, the inverted file against exact search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechclip.common.errors import UserError
from speechclip.search import neighbours
from speechclip.search.neighbours import (
    InvertedFile,
    build_inverted_file,
    default_lists,
    default_probes,
    exact_search,
    read_inverted_file,
    update_inverted_file,
    write_inverted_file,
)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, seed: int, dim: int = 24) -> np.ndarray:
    """Unit vectors around 40 centres, as embeddings of images are: neighbours are in several lists."""
    centres = np.random.default_rng(0).standard_normal((40, dim))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(40, size=count)] + 1.5 * rng.standard_normal((count, dim)))


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


def test_inverted_file_with_all_lists_is_exact() -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors, queries = clustered(3000, 1), clustered(20, 2)
    searcher = InvertedFile(build_inverted_file(vectors, 30, seed=0), vectors, probes=30)
    rows, cosines = searcher.search(queries, 10)
    true_rows, true_cosines = exact_search(vectors, queries, 10)
    np.testing.assert_array_equal(rows, true_rows)  # the shortlist is ranked with the vectors themselves
    np.testing.assert_allclose(cosines, true_cosines, atol=1e-6)


def test_inverted_file_recall_grows_with_the_lists() -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors, queries = clustered(6000, 1), clustered(100, 2)
    true = exact_search(vectors, queries, 10)[0]
    recall = []
    for probes in (1, 10, 40):
        found = InvertedFile(build_inverted_file(vectors, 80, seed=0), vectors, probes).search(queries, 10)[0]
        recall.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist())]))
    assert recall[0] < recall[1] < recall[2]
    assert recall[2] > 0.95


def test_inverted_file_depends_on_the_seed() -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors, queries = clustered(2000, 1), clustered(10, 2)
    found = [
        InvertedFile(build_inverted_file(vectors, 40, seed=seed), vectors, 2).search(queries, 5)[0]
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_inverted_file_with_short_lists_finds_fewer() -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors = unit(np.array([[1, 0], [0.9, 0.1], [-1, 0], [-1, 0.1], [-1, 0.2]]))
    rows, _ = InvertedFile(build_inverted_file(vectors, 2, seed=0), vectors, 1).search(vectors[:1], 4)
    assert rows.tolist() == [[0, 1]]


@pytest.mark.parametrize("lists", [0, 11])
def test_build_refuses_more_lists_than_vectors(lists: int) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    with pytest.raises(UserError, match=f"--lists: {lists} is not 1 to 10, the number of vectors"):
        build_inverted_file(clustered(10, 0), lists, seed=0)


def test_read_inverted_file_names_a_damaged_file(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    path = tmp_path / "lists.faiss"
    write_inverted_file(build_inverted_file(clustered(100, 0), 4, seed=0), path)
    assert read_inverted_file(path).ntotal == 100
    path.write_bytes(path.read_bytes()[:500])
    for bad in (path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=f"{bad}: missing, damaged or truncated"):
            read_inverted_file(bad)


def test_build_without_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r'faiss is not installed. Install it with: tools/install.sh --extras "search"'):
        build_inverted_file(clustered(10, 0), 2, seed=0)


def test_default_lists_and_probes() -> None:
    assert [default_lists(count) for count in (1, 10_000, 1_000_000)] == [2, 200, 2000]
    assert [default_probes(lists) for lists in (1, 200, 2000)] == [1, 32, 101]


def test_update_inverted_file_renumbers_removes_and_adds() -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    old, added = clustered(900, 1), clustered(60, 2)
    index = build_inverted_file(old, 20, 0)
    kept = np.setdiff1d(np.arange(900), np.arange(0, 900, 7))
    new_rows = np.full(900, -1)
    new_rows[kept] = np.arange(60, 60 + len(kept))  # the added ones come first
    vectors = np.concatenate([added, old[kept]])
    update_inverted_file(index, new_rows, vectors, np.arange(60))
    assert index.ntotal == len(vectors)
    queries = clustered(20, 3)
    rows, cosines = InvertedFile(index, vectors, 20).search(queries, 10)
    wanted = exact_search(vectors, queries, 10)
    np.testing.assert_array_equal(rows, wanted[0])
    np.testing.assert_allclose(cosines, wanted[1], atol=1e-6)


def test_inverted_file_searches_a_range_of_rows() -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    vectors, queries = clustered(2000, 1), clustered(10, 2)
    index = InvertedFile(build_inverted_file(vectors, 30, 0), vectors, 30)
    for rows in (range(500), range(1990, 2000), range(700, 1700)):
        found, cosines = index.search(queries, 5, rows)
        wanted = exact_search(vectors[rows.start : rows.stop], queries, 5)
        np.testing.assert_array_equal(found, wanted[0] + rows.start)
        np.testing.assert_allclose(cosines, wanted[1], atol=1e-6)
