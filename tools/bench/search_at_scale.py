#!/usr/bin/env python3
"""Measure an index of many images: time and memory to build it, time of a query, recall@10 against exact search.

The vectors are made from real embeddings: w a + (1 - w) b + p (c - d), L2-normalised, with four random real embeddings
a to d, w from 0.5 to 1 and p up to 0.3. A tenth of the real embeddings is held out, and the queries are made only from
these. --queries adds other queries, such as embeddings of captions, which are far from images as spoken queries are.
Exact search uses the vectors in single precision. The queries are sent one at a time, in a process that has only the
index open. The time does not include the encoding of speech.

Usage: tools/bench/search_at_scale.py --embeddings NPZ [--queries NPZ] [--count 1000000] [--number 1000] [--threads 2]
       [--lists 0] [--probes 0 64 ...] [--seed 0] [--out DIR]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

TOP_K = 10
HELD_OUT = 0.1  # of the real embeddings
BLOCK = 50_000
GB = 1e9


def mix(real: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return ``count`` unit vectors [count, D], interpolated and perturbed from unit vectors [N, D]."""
    import numpy as np

    rng = np.random.default_rng(seed)
    out = np.empty((count, real.shape[1]), dtype=np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        a, b, c, d = real[rng.integers(len(real), size=(4, size))]
        w = rng.uniform(0.5, 1.0, (size, 1)).astype(np.float32)
        p = rng.uniform(0.0, 0.3, (size, 1)).astype(np.float32)
        made = w * a + (1 - w) * b + p * (c - d)
        out[start : start + size] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return out


def resident(kind: str) -> float:
    """Return the memory of this process in GB: "RssAnon" is its own, "RssFile" is mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GB for line in lines if line.startswith(f"{kind}:"))


def measure(folder: str, asked: dict[str, np.ndarray], probes: list[int], threads: int) -> dict[str, Any]:
    """Open an index and search it with every query, for each number of probes. Return rows, times and memory."""
    import numpy as np

    from speechclip.search.index import ImageIndex
    from speechclip.search.neighbours import import_faiss

    before = resident("RssAnon")
    started = time.perf_counter()
    index = ImageIndex.open(folder)
    report: dict[str, Any] = {"open": time.perf_counter() - started, "kind": index.info.kind, "asked": []}
    if index.info.kind == "ivf":
        import_faiss().omp_set_num_threads(threads)
    for probe in probes if index.info.kind == "ivf" else [0]:
        index.set_probes(probe or index.info.probes)
        for name, queries in asked.items():
            rows, took = [], []
            for query in queries:
                started = time.perf_counter(), time.process_time()
                rows.append(index.search(query[None], TOP_K)[0][0])
                took.append((time.perf_counter() - started[0], time.process_time() - started[1]))
            report["asked"].append((probe or index.info.probes, name, np.stack(rows), 1000 * np.array(took)))
    report["own"], report["mapped"] = resident("RssAnon") - before, resident("RssFile")
    report["disk"] = sum(path.stat().st_size for path in Path(folder).iterdir()) / GB
    return report


def build(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Make the vectors and the index. Return figures of the build, the queries by name, and their true neighbours."""
    import numpy as np

    from speechclip.data.embeddings import load_embeddings
    from speechclip.search.index import IndexInfo
    from speechclip.search.items import Items
    from speechclip.search.neighbours import exact_search
    from speechclip.search.write import Structure, write_index

    real = load_embeddings(args.embeddings)[1]
    order = np.random.default_rng(args.seed).permutation(len(real))
    held = max(4, round(HELD_OUT * len(real)))
    if len(real) - held < 4:
        raise UserError(f"{args.embeddings}: {len(real)} embeddings. At least 8 are needed.")
    vectors = mix(real[order[held:]], args.count, args.seed + 1)
    asked = {"held-out images": mix(real[order[:held]], args.number, args.seed + 2)}
    if args.queries:
        asked[Path(args.queries).stem] = load_embeddings(args.queries)[1][: args.number]
    started, computed = time.perf_counter(), time.process_time()
    ids = [f"{row:07d}" for row in range(args.count)]
    structure = Structure("auto", args.lists, args.probes[0], args.seed)
    origin = IndexInfo("", 0, 0, "benchmark", "benchmark", thumbnails=False)
    info = write_index(folder, Items(ids), vectors, structure, origin)
    took, computed = time.perf_counter() - started, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    figures = {"seconds": took, "computed": computed, "peak": peak, "vectors": vectors.nbytes / GB, "info": info}
    started = time.perf_counter()
    truth = {name: exact_search(vectors, queries, TOP_K)[0] for name, queries in asked.items()}
    figures["exact_ms"] = 1000 * (time.perf_counter() - started) / sum(map(len, asked.values()))
    return figures, asked, truth


def show(figures: dict[str, Any], found: dict[str, Any], truth: dict[str, np.ndarray]) -> None:
    """Print the measurements."""
    import numpy as np

    info = figures["info"]
    print(f"{info.count:,} vectors of {info.dim} dimensions, {info.kind}, {info.lists} lists")
    print(f"build: {figures['seconds']:.0f} s ({figures['computed']:.0f} s of processor time), {found['disk']:.2f} GB;")
    print(f"  {figures['peak']:.2f} GB in memory at most, {figures['vectors']:.2f} GB of them the input vectors")
    print(f"open: {found['open']:.1f} s; searching: {found['own']:.2f} GB own, {found['mapped']:.2f} GB mapped")
    print(f"exact search over single precision, queries in one batch: {figures['exact_ms']:.0f} ms a query\n")
    print("| lists searched | queries | number | recall@10 | median ms | p95 ms | median processor ms |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for probes, name, rows, took in found["asked"]:
        hits = [len(set(row) & set(true)) / len(true) for row, true in zip(rows.tolist(), truth[name].tolist())]
        times = f"{np.median(took[:, 0]):.2f} | {np.percentile(took[:, 0], 95):.2f} | {np.median(took[:, 1]):.2f}"
        print(f"| {probes} | {name} | {len(rows):,} | {np.mean(hits):.3f} | {times} |")


@exit_on_user_error
def main() -> None:
    """Build the index, search it and print a table."""
    parser = ArgumentParser(prog="search_at_scale.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--embeddings", required=True, metavar="NPZ", help="real embeddings (ids, embeddings)")
    parser.add_argument("--queries", default="", metavar="NPZ", help="further queries")
    parser.add_argument("--count", type=int, default=1_000_000, help="number of vectors")
    parser.add_argument("--number", type=int, default=1000, help="number of queries of each kind")
    parser.add_argument("--threads", type=int, default=2, help="number of cores, also to build the index")
    parser.add_argument("--lists", type=int, default=0, help="see speechclip index")
    parser.add_argument(
        "--probes", type=int, nargs="+", default=[0], help="see speechclip index; every number is measured"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the vectors, the queries and the lists")
    parser.add_argument(
        "--out", default="", metavar="DIR", help="parent of the temporary index; default: the system's folder"
    )
    args = parser.parse_args()
    if min(args.count, args.number, args.threads) < 1:
        parser.error("--count, --number and --threads must be at least 1")
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)  # numpy and faiss count the cores when they are imported
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(len(cores))

    from speechclip.common.provenance import commit

    with tempfile.TemporaryDirectory(dir=args.out or None) as scratch:
        figures, asked, truth = build(args, Path(scratch))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (scratch, asked, args.probes, len(cores)))
    print(f"{' '.join(sys.argv)} (commit {commit()}, seed {args.seed}, {len(cores)} cores)\n")
    show(figures, found, truth)


if __name__ == "__main__":
    main()
