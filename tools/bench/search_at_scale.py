#!/usr/bin/env python3
"""Measure an index of many images: time and memory to build it, time of a query, recall@10 against exact search.

The vectors are made from real embeddings: w a + (1 - w) b + p (c - d), L2-normalised, with four random real embeddings
a to d, w from 0.5 to 1 and p up to 0.3. A tenth of the real embeddings is held out, and the queries are made only from
these. --queries adds other queries, such as embeddings of captions, which are far from images as spoken queries are.
Exact search uses the vectors in single precision. The queries are sent one at a time, in a process that has only the
index open. The time does not include the encoding of speech. The vectors are never in memory together.

With --limit_gb, both processes run in a control group of Linux (root, cgroup v1 or v2) whose memory is limited. The
limit counts everything: own memory, mapped files and cached files. The kernel stops a process that needs more.

Usage: tools/bench/search_at_scale.py --embeddings NPZ [--queries NPZ] [--count 1000000] [--number 1000] [--threads 2]
       [--lists 0] [--probes 0 64 ...] [--seed 0] [--limit_gb 8] [--out DIR] [--results FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

TOP_K = 10
HELD_OUT = 0.1  # of the real embeddings
BLOCK = 50_000
MADE = 1024  # vectors that are made at once, in the processor's cache
GB = 1e9


def mix(real: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return ``count`` unit vectors [count, D], interpolated and perturbed from unit vectors [N, D]."""
    import numpy as np

    rng = np.random.default_rng(seed)
    out = np.empty((count, real.shape[1]), dtype=np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        a, b, c, d = rng.integers(len(real), size=(4, size))
        w = rng.uniform(0.5, 1.0, (size, 1)).astype(np.float32)
        p = rng.uniform(0.0, 0.3, (size, 1)).astype(np.float32)
        for at in range(0, size, MADE):
            part = slice(at, at + MADE)
            made = w[part] * real[a[part]] + (1 - w[part]) * real[b[part]] + p[part] * (real[c[part]] - real[d[part]])
            out[start:][part][: size - at] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return out


class Mixed:
    """A table of :func:`mix` that is never in memory: each block of MADE vectors is made when it is read.

    Args:
        real: [N, D], L2-normalised.
        count: number of vectors.
        seed: seed of the first block; each block has its own.
    """

    def __init__(self, real: np.ndarray, count: int, seed: int) -> None:
        self.real, self.shape, self.seed = real, (count, real.shape[1]), seed

    def __len__(self) -> int:
        """Return the number of vectors."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the vectors of a slice, or of an array of rows in increasing order."""
        import numpy as np

        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        found = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        numbers, first = np.unique(wanted // MADE, return_index=True)
        for number, start, end in zip(numbers.tolist(), first, [*first[1:], len(wanted)]):
            size = min(MADE, len(self) - number * MADE)
            block = mix(self.real, size, self.seed + 1000 * number)
            found[start:end] = block[wanted[start:end] - number * MADE]
        return found


def resident(kind: str) -> float:
    """Return the memory of this process in GB: "RssAnon" is its own, "RssFile" is mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GB for line in lines if line.startswith(f"{kind}:"))


class Peak:
    """The memory that this process adds in a ``with`` block at most, in GB, from a sample every 50 ms.

    Attributes:
        own: anonymous memory.
        mapped: resident pages of mapped files.
    """

    def __enter__(self) -> Peak:
        before = resident("RssAnon"), resident("RssFile")
        self.own = self.mapped = 0.0
        self._stop = threading.Event()

        def look() -> None:
            self.own = max(self.own, resident("RssAnon") - before[0])
            self.mapped = max(self.mapped, resident("RssFile") - before[1])

        def watch() -> None:
            while not self._stop.wait(0.05):
                look()

        self._look = look
        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()


def measure(folder: str, asked: dict[str, np.ndarray], probes: list[int], threads: int) -> dict[str, Any]:
    """Open an index and search it with every query, for each number of probes. Return rows, times and memory."""
    import numpy as np

    from speechclip.search.index import ImageIndex
    from speechclip.search.neighbours import import_faiss

    with Peak() as peak:
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
                    began = time.perf_counter(), time.process_time()
                    rows.append(index.search(query[None], TOP_K)[0][0])
                    took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
                report["asked"].append((probe or index.info.probes, name, np.stack(rows), 1000 * np.array(took)))
    report["own"], report["mapped"] = peak.own, peak.mapped
    report["disk"] = sum(path.stat().st_size for path in Path(folder).iterdir()) / GB
    return report


def build(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Make the vectors and the index. Return figures of the build, the queries by name, and their true neighbours."""
    import numpy as np

    from speechclip.common.files import replace_folder
    from speechclip.data.embeddings import load_embeddings
    from speechclip.search.index import IndexInfo, read_info
    from speechclip.search.items import Items
    from speechclip.search.neighbours import exact_search
    from speechclip.search.write import Structure, write_index

    real = load_embeddings(args.embeddings)[1]
    order = np.random.default_rng(args.seed).permutation(len(real))
    held = max(4, round(HELD_OUT * len(real)))
    if len(real) - held < 4:
        raise UserError(f"{args.embeddings}: {len(real)} embeddings. At least 8 are needed.")
    vectors: Any = Mixed(real[order[held:]], args.count, args.seed + 1)
    asked = {"held-out images": mix(real[order[:held]], args.number, args.seed + 2)}
    if args.queries:
        asked[Path(args.queries).stem] = load_embeddings(args.queries)[1][: args.number]
    structure = Structure("auto", args.lists, args.probes[0], args.seed)
    origin = IndexInfo("", 0, 0, "benchmark", "benchmark", thumbnails=False)

    started, computed = time.perf_counter(), time.process_time()

    def save(part: Path) -> None:
        items = Items([f"{row:08d}" for row in range(args.count)])
        write_index(part, items, vectors, structure, origin)

    with Peak() as peak:
        replace_folder(folder, save)
    took, computed = time.perf_counter() - started, time.process_time() - computed
    figures = {"seconds": took, "computed": computed, "own": peak.own, "mapped": peak.mapped, "info": read_info(folder)}
    figures["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    started = time.perf_counter()
    truth = {name: exact_search(vectors, queries, TOP_K)[0] for name, queries in asked.items()}
    figures["exact_ms"] = 1000 * (time.perf_counter() - started) / sum(map(len, asked.values()))
    return figures, asked, truth


@contextlib.contextmanager
def limited(gigabytes: float) -> Iterator[Callable[[], dict[str, float]]]:
    """Limit the memory of this process and of its children. Yield a function that returns the largest use so far.

    Args:
        gigabytes: the limit; 0 for none.

    Raises:
        UserError: control groups cannot be changed.
    """
    if not gigabytes:
        yield dict
        return
    root = Path("/sys/fs/cgroup")
    first = (root / "memory").is_dir()  # version 1 has a tree per resource
    parent = root / "memory" if first else root
    group = parent / f"search_at_scale_{os.getpid()}"
    names = ("memory.limit_in_bytes", "memory.max_usage_in_bytes") if first else ("memory.max", "memory.peak")
    try:
        group.mkdir()
        (group / names[0]).write_text(f"{gigabytes * GB:.0f}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise UserError(f"{group}: {error.strerror}. Run as root, or without --limit_gb.") from error
    try:
        yield lambda: {"limit_gb": gigabytes, "group_gb": int((group / names[1]).read_text()) / GB}
    finally:
        for process in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (parent / "cgroup.procs").write_text(process)
        group.rmdir()


def record(
    path: Path, figures: dict[str, Any], found: dict[str, Any], truth: dict[str, np.ndarray], command: str
) -> None:
    """Add the figures to the results. They replace those of the same number of vectors."""
    from measure import machine

    from speechclip.common.provenance import commit

    info = figures.pop("info")
    settings = summary(found, truth)
    row = {"count": info.count, "dim": info.dim, "lists": info.lists, **figures, "settings": settings}
    row.update({f"search_{key}": found[key] for key in ("open", "own", "mapped", "disk")})
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results[f"search_scale_{info.count}"] = {
        "rows": [row], "machine": machine(), "commit": commit(), "command": command
    }  # fmt: skip
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def summary(found: dict[str, Any], truth: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return recall and times for each number of lists and each kind of queries."""
    import numpy as np

    rows = []
    for probes, name, wanted, took in found["asked"]:
        hits = [len(set(row) & set(true)) / len(true) for row, true in zip(wanted.tolist(), truth[name].tolist())]
        rows.append({
            "probes": probes, "queries": name, "number": len(wanted), "recall": float(np.mean(hits)),
            "median_ms": float(np.median(took[:, 0])), "p95_ms": float(np.percentile(took[:, 0], 95)),
            "cpu_ms": float(np.median(took[:, 1])),
        })  # fmt: skip
    return rows


def show(figures: dict[str, Any], found: dict[str, Any], truth: dict[str, np.ndarray]) -> None:
    """Print the measurements."""
    info = figures["info"]
    print(f"{info.count:,} vectors of {info.dim} dimensions, {info.kind}, {info.lists} lists")
    print(f"build: {figures['seconds']:.0f} s ({figures['computed']:.0f} s of processor time), {found['disk']:.2f} GB;")
    parts = f"{figures['own']:.2f} GB own, {figures['mapped']:.2f} GB mapped"
    print(f"  memory at most {figures['resident']:.2f} GB resident, of which the build added {parts}")
    print(f"open: {found['open']:.1f} s; searching: {found['own']:.2f} GB own, {found['mapped']:.2f} GB mapped")
    print(f"exact search over single precision, which makes the vectors again: {figures['exact_ms']:.0f} ms a query\n")
    print("| lists searched | queries | number | recall@10 | median ms | p95 ms | median processor ms |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for row in summary(found, truth):
        times = f"{row['median_ms']:.2f} | {row['p95_ms']:.2f} | {row['cpu_ms']:.2f}"
        print(f"| {row['probes']} | {row['queries']} | {row['number']:,} | {row['recall']:.3f} | {times} |")


@exit_on_user_error
def main() -> None:
    """Build the index, search it and print a table."""
    parser = ArgumentParser(prog="search_at_scale.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--embeddings", required=True, metavar="NPZ", help="real embeddings (ids, embeddings)")
    parser.add_argument("--queries", default="", metavar="NPZ", help="further queries")
    parser.add_argument("--count", type=int, default=1_000_000, help="number of vectors")
    parser.add_argument("--number", type=int, default=1000, help="number of queries of each kind")
    parser.add_argument("--threads", type=int, default=2, help="number of threads, also to build the index")
    parser.add_argument("--lists", type=int, default=0, help="see speechclip index")
    parser.add_argument(
        "--probes", type=int, nargs="+", default=[0], help="see speechclip index; every number is measured"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the vectors, the queries and the lists")
    parser.add_argument(
        "--out", default="", metavar="DIR", help="parent of the temporary index; default: the system's folder"
    )
    parser.add_argument("--limit_gb", type=float, default=0.0, help="limit of the memory in GB; 0 for none")
    parser.add_argument("--results", default="", metavar="FILE", help="add the figures to this file of results")
    args = parser.parse_args()
    if min(args.count, args.number, args.threads) < 1:
        parser.error("--count, --number and --threads must be at least 1")
    args.threads = min(args.threads, len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)

    from speechclip.common.provenance import commit

    with tempfile.TemporaryDirectory(dir=args.out or None) as scratch, limited(args.limit_gb) as use:
        folder = str(Path(scratch) / "index")
        figures, asked, truth = build(args, Path(folder))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (folder, asked, args.probes, args.threads))
        figures.update(use())
    words = ("count", "number", "threads", "seed", "limit_gb")
    command = f"tools/bench/search_at_scale.py {' '.join(f'--{word} {getattr(args, word)}' for word in words)}"
    print(f"{' '.join(sys.argv)} (commit {commit()}, seed {args.seed}, {args.threads} threads)\n")
    show(figures, found, truth)
    if args.results:
        record(Path(args.results), figures, found, truth, command)


if __name__ == "__main__":
    main()
