"""Vector engines behind one interface, for search_engines.py: our index, faiss's HNSW with ids, usearch and LanceDB."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.files import replace_folder
from speechclip.search.index import LISTS, VECTORS, ImageIndex, IndexInfo
from speechclip.search.items import Items
from speechclip.search.neighbours import (
    BLOCK,
    default_lists,
    import_faiss,
)
from speechclip.search.write import Reused, Structure, write_index

Floats = np.ndarray
BENCHMARK = IndexInfo("", 0, 0, "benchmark", "benchmark", thumbnails=False)
SHORTLIST = 1000  # vectors that are ranked again with their stored values


class Engine(ABC):
    """An engine whose index is in a folder.

    Attributes:
        settings: the settings of the search that are measured, from fast to exact.
    """

    settings: Sequence[int] = ()

    @abstractmethod
    def build(self, vectors: Floats, folder: Path) -> None:
        """Write an index of vectors [N, D]. The id of a vector is its row."""

    @abstractmethod
    def open(self, folder: Path, threads: int) -> None:
        """Open the index for :meth:`search`."""

    @abstractmethod
    def search(self, query: Floats, top_k: int, setting: int) -> Any:
        """Return the ids of the nearest vectors of a query [D]."""

    @abstractmethod
    def add(self, folder: Path, vectors: Floats, first: int) -> None:
        """Open the index, add vectors with ids from ``first``, and write it. Then they can be found."""


class Ours(Engine):
    """Our files: faiss's inverted file with 8 bits per dimension, and vectors in half precision, memory-mapped."""

    settings = (16, 32, 64, 128, 256)

    def build(self, vectors: Floats, folder: Path) -> None:
        """See :class:`Engine`."""
        ids = [f"{row:08d}" for row in range(len(vectors))]
        replace_folder(folder, lambda part: write_index(part, Items(ids), vectors, Structure("ivf"), BENCHMARK))

    def open(self, folder: Path, threads: int) -> None:
        """See :class:`Engine`."""
        import_faiss().omp_set_num_threads(threads)
        self.index = ImageIndex.open(folder)

    def search(self, query: Floats, top_k: int, setting: int) -> Any:
        """See :class:`Engine`."""
        self.index.set_probes(setting)
        return self.index.search(query[None], top_k)[0][0]

    def add(self, folder: Path, vectors: Floats, first: int) -> None:
        """See :class:`Engine`. The lists stay; all files are written again, with checksums, as an update does."""
        old = np.load(folder / VECTORS, mmap_mode="r")
        rows = np.concatenate([np.arange(first), np.full(len(vectors), -1)])

        def write(part: Path) -> None:
            table = np.concatenate([old, vectors.astype(old.dtype)])
            items = Items([f"{row:08d}" for row in range(len(table))])
            write_index(part, items, table, Structure("ivf"), BENCHMARK, Reused(folder, rows))

        replace_folder(folder, write)


class Hnsw(Engine):
    """faiss's HNSW with ids over 8 bits per dimension, all in memory."""

    settings = (16, 32, 64, 128, 256, 512, 1024, 2048)
    neighbours, width = 16, 80

    def build(self, vectors: Floats, folder: Path) -> None:
        """See :class:`Engine`."""
        faiss = import_faiss()
        graph = faiss.IndexHNSWSQ(
            vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, self.neighbours, faiss.METRIC_INNER_PRODUCT
        )
        graph.hnsw.efConstruction = self.width
        graph.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // 50_000)]))
        index = faiss.IndexIDMap2(graph)
        for start in range(0, len(vectors), BLOCK):
            block = np.ascontiguousarray(vectors[start : start + BLOCK])
            index.add_with_ids(block, np.arange(start, start + len(block)))
        folder.mkdir()
        faiss.write_index(index, str(folder / "index.faiss"))

    def open(self, folder: Path, threads: int) -> None:
        """See :class:`Engine`."""
        import_faiss().omp_set_num_threads(threads)
        self.index = import_faiss().read_index(str(folder / "index.faiss"))
        self.graph = import_faiss().downcast_index(self.index.index)

    def search(self, query: Floats, top_k: int, setting: int) -> Any:
        """See :class:`Engine`."""
        self.graph.hnsw.efSearch = setting
        return self.index.search(query[None], top_k)[1][0]

    def add(self, folder: Path, vectors: Floats, first: int) -> None:
        """See :class:`Engine`."""
        self.open(folder, 1)
        self.index.add_with_ids(vectors, np.arange(first, first + len(vectors)))
        import_faiss().write_index(self.index, str(folder / "index.faiss"))


class RaBitQ(Engine):
    """faiss's inverted file with RaBitQ codes, and our ranking with vectors in half precision, memory-mapped."""

    settings = (16, 32, 64, 128, 256)
    bits = 1

    def build(self, vectors: Floats, folder: Path) -> None:
        """See :class:`Engine`."""
        faiss = import_faiss()
        count, dim = vectors.shape
        lists = default_lists(count)
        inner = faiss.IndexIVFRaBitQ(
            faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT, True, self.bits
        )  # fmt: skip
        inner.cp.spherical, inner.cp.niter, inner.cp.min_points_per_centroid = True, 8, 1
        rotation = faiss.RandomRotationMatrix(dim, dim)
        index = faiss.IndexPreTransform(rotation, inner)
        sample = np.sort(np.random.default_rng(0).permutation(count)[: lists * 64])
        index.train(np.ascontiguousarray(vectors[sample]))
        for start in range(0, count, BLOCK):
            index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
        folder.mkdir()
        faiss.write_index(index, str(folder / LISTS))
        np.save(folder / VECTORS, vectors.astype(np.float16))

    def open(self, folder: Path, threads: int) -> None:
        """See :class:`Engine`."""
        faiss = import_faiss()
        faiss.omp_set_num_threads(threads)
        self.index = faiss.read_index(str(folder / LISTS))
        self.vectors = np.load(folder / VECTORS, mmap_mode="r")

    def search(self, query: Floats, top_k: int, setting: int) -> Any:
        """See :class:`Engine`."""
        faiss = import_faiss()
        faiss.extract_index_ivf(self.index).nprobe = setting
        return rank_again(self.vectors, self.index.search(query[None], SHORTLIST)[1][0], query, top_k)

    def add(self, folder: Path, vectors: Floats, first: int) -> None:
        """See :class:`Engine`."""
        self.open(folder, 1)
        self.index.add(vectors)
        import_faiss().write_index(self.index, str(folder / LISTS))
        append(folder / VECTORS, vectors)


class Usearch(Engine):
    """usearch's HNSW over 8 bits per dimension, and our ranking with vectors in half precision, both memory-mapped."""

    settings = (16, 32, 64, 128, 256, 512, 1024, 2048)
    shortlist = 50  # vectors that are ranked again: 8 bits alone do not reach the recall

    def _empty(self, dim: int) -> Any:
        from usearch.index import Index

        return Index(ndim=dim, metric="cos", dtype="i8", connectivity=16, expansion_add=80, expansion_search=64)

    def build(self, vectors: Floats, folder: Path) -> None:
        """See :class:`Engine`."""
        index = self._empty(vectors.shape[1])
        for start in range(0, len(vectors), BLOCK):
            block = np.ascontiguousarray(vectors[start : start + BLOCK])
            index.add(np.arange(start, start + len(block)), block, threads=THREADS)
        folder.mkdir()
        index.save(str(folder / "index.usearch"))
        np.save(folder / VECTORS, vectors.astype(np.float16))

    def open(self, folder: Path, threads: int) -> None:
        """See :class:`Engine`."""
        from usearch.index import Index

        self.index = Index.restore(str(folder / "index.usearch"), view=True)
        self.vectors = np.load(folder / VECTORS, mmap_mode="r")

    def search(self, query: Floats, top_k: int, setting: int) -> Any:
        """See :class:`Engine`."""
        self.index.expansion_search = setting
        found = self.index.search(query, self.shortlist, threads=1).keys
        return rank_again(self.vectors, np.asarray(found, dtype=np.int64), query, top_k)

    def add(self, folder: Path, vectors: Floats, first: int) -> None:
        """See :class:`Engine`."""
        from usearch.index import Index

        index = Index.restore(str(folder / "index.usearch"), view=False)
        index.add(np.arange(first, first + len(vectors)), vectors, threads=THREADS)
        index.save(str(folder / "index.usearch"))
        append(folder / VECTORS, vectors)


class Lance(Engine):
    """LanceDB: an inverted file of its table, and ranking with the stored vectors."""

    settings = (8, 16, 32, 64, 128, 256)
    index_type, bits, refine = "IVF_RQ", 1, 20

    def _batches(self, vectors: Floats, first: int = 0) -> Any:
        import pyarrow as pa

        dim = vectors.shape[1]
        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
        for start in range(0, len(vectors), BLOCK):
            block = np.ascontiguousarray(vectors[start : start + BLOCK], dtype=np.float32)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dim)
            ids = pa.array(np.arange(first + start, first + start + len(block)))
            yield pa.record_batch([ids, flat], schema=schema)

    def build(self, vectors: Floats, folder: Path) -> None:
        """See :class:`Engine`."""
        import lancedb
        import pyarrow as pa

        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), vectors.shape[1]))])
        reader = pa.RecordBatchReader.from_batches(schema, self._batches(vectors))
        table = lancedb.connect(str(folder)).create_table("items", data=reader)
        self._index(table, len(vectors))

    def _index(self, table: Any, count: int) -> None:
        table.create_index(
            metric="dot", vector_column_name="vector", index_type=self.index_type,
            num_partitions=default_lists(count), num_bits=self.bits,
        )  # fmt: skip

    def open(self, folder: Path, threads: int) -> None:
        """See :class:`Engine`."""
        import lancedb

        self.table = lancedb.connect(str(folder)).open_table("items")

    def search(self, query: Floats, top_k: int, setting: int) -> Any:
        """See :class:`Engine`."""
        asked = self.table.search(query, vector_column_name="vector").distance_type("dot").limit(top_k)
        found = asked.nprobes(setting).refine_factor(self.refine).select(["id", "_distance"]).to_arrow()
        return found["id"].to_numpy()

    def add(self, folder: Path, vectors: Floats, first: int) -> None:
        """See :class:`Engine`. ``optimize`` adds the rows to the index."""
        import pyarrow as pa

        self.open(folder, 1)
        self.table.add(pa.Table.from_batches(list(self._batches(vectors, first))))
        self.table.optimize()


class LanceHnsw(Lance):
    """LanceDB: an inverted file of HNSW graphs over 8 bits per dimension."""

    settings = (1, 2, 4, 8, 16)
    refine = 10

    def _index(self, table: Any, count: int) -> None:
        table.create_index(
            metric="dot", vector_column_name="vector", index_type="IVF_HNSW_SQ",
            num_partitions=max(1, count // 50_000), m=16, ef_construction=80,
        )  # fmt: skip


THREADS = 1
ENGINES: dict[str, type[Engine]] = {
    "ours": Ours,
    "faiss_rabitq": RaBitQ,
    "faiss_hnsw": Hnsw,
    "usearch": Usearch,
    "lancedb_ivf": Lance,
    "lancedb_hnsw": LanceHnsw,
}


def rank_again(vectors: Floats, rows: Floats, query: Floats, top_k: int) -> Floats:
    """Return the best rows of a shortlist by their stored vectors [N, D]. Rows below 0 are left out."""
    rows = np.sort(rows[rows >= 0])
    return rows[np.argsort(-(vectors[rows].astype(np.float32) @ query))[:top_k]]


def append(path: Path, vectors: Floats) -> None:
    """Write a file of vectors in half precision again, with more vectors at its end."""
    new = path.with_name("new.npy")
    np.save(new, np.concatenate([np.load(path, mmap_mode="r"), vectors.astype(np.float16)]))
    new.replace(path)


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(folder: Path) -> None:
    """Remove the index of an engine."""
    shutil.rmtree(folder, ignore_errors=True)
