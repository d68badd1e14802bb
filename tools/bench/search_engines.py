#!/usr/bin/env python3
"""Compare our index with faiss's HNSW, usearch and LanceDB: time and memory to build, to add 1,000, and of a query.

The vectors and the queries are those of search_at_scale.py, and the truth is exact search in single precision. Each
engine builds and searches in processes of its own. For each engine the table shows the fastest setting whose recall@10
reaches --recall. Memory is the process's own (anonymous) memory, and the resident part of files that are mapped into
memory. A step that takes more than --limit seconds of processor time is stopped, and the table says so. LanceDB and
usearch are not dependencies of this project: install them with `pip install lancedb usearch`.

Usage: tools/bench/search_engines.py --embeddings NPZ [--count 1000000] [--engines ours usearch ...] [--number 300]
       [--recall 0.95] [--threads 1] [--limit 900] [--out DIR] [--results FILE]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

NAMES = ("ours", "faiss_rabitq", "faiss_hnsw", "usearch", "lancedb_ivf", "lancedb_hnsw")
TOP_K = 10
ADDED = 1000


def built(name: str, vectors: str, folder: str, threads: int) -> dict[str, Any]:
    """Build an index in this process. Return time, processor time, memory and size on disk."""
    import engines
    import numpy as np
    from search_at_scale import Peak

    engines.THREADS = threads
    engine, table = engines.ENGINES[name](), np.load(vectors, mmap_mode="r")
    started, computed = time.perf_counter(), time.process_time()
    with Peak() as peak:
        engine.build(table, Path(folder))
    took = time.perf_counter() - started, time.process_time() - computed
    return {
        "build_s": took[0],
        "build_cpu_s": took[1],
        "build_gb": peak.own,
        "build_mapped_gb": peak.mapped,
        "disk_gb": engines.size(Path(folder)) / 1e9,
    }


def added(name: str, folder: str, new: np.ndarray, first: int, threads: int) -> dict[str, Any]:
    """Add vectors in this process and search the first one. Return time and whether it was found."""
    import engines
    from search_at_scale import Peak

    engines.THREADS = threads
    engine = engines.ENGINES[name]()
    started, computed = time.perf_counter(), time.process_time()
    with Peak() as peak:
        engine.add(Path(folder), new, first)
    took = time.perf_counter() - started, time.process_time() - computed
    engine.open(Path(folder), threads)
    found = first in {int(row) for row in engine.search(new[0], TOP_K, max(engine.settings))}
    return {"add_s": took[0], "add_cpu_s": took[1], "add_gb": peak.own, "added_is_found": found}


def searched(
    name: str, folder: str, queries: np.ndarray, truth: np.ndarray, least: float, threads: int
) -> dict[str, Any]:
    """Search with each setting until the recall is reached. Return time, recall and memory of each."""
    import engines
    import numpy as np
    from search_at_scale import Peak

    engine = engines.ENGINES[name]()
    rows = []
    with Peak() as peak:
        started = time.perf_counter()
        engine.open(Path(folder), threads)
        opened = time.perf_counter() - started
        for setting in engine.settings:
            took, hits = [], []
            for query, true in zip(queries, truth):
                began = time.perf_counter(), time.process_time()
                found = engine.search(query, TOP_K, setting)
                took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
                hits.append(len({int(row) for row in found} & set(true.tolist())) / TOP_K)
            wall, computed = 1000 * np.array(took).T
            rows.append({
                "setting": setting, "recall": float(np.mean(hits)), "median_ms": float(np.median(wall)),
                "p95_ms": float(np.percentile(wall, 95)), "cpu_ms": float(np.median(computed)),
            })  # fmt: skip
            print(name, rows[-1], flush=True)
            if rows[-1]["recall"] >= least:
                break
    return {"open_s": opened, "search_gb": peak.own, "search_mapped_gb": peak.mapped, "settings": rows}


def run_apart(work: Callable[..., dict[str, Any]], words: tuple[Any, ...], limit: float) -> dict[str, Any] | None:
    """Run a function in a new process. Return its result; None if it needs more processor time.

    Raises:
        UserError: the process failed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, work, words))
    process.start()
    sender.close()
    try:
        while not receiver.poll(1.0):
            if processor_seconds(process.pid) > limit:
                return None
        return receiver.recv()
    except EOFError:
        raise UserError(f"{words[0]}: the process of {work.__name__} failed. See the lines above.") from None
    finally:
        process.kill()
        process.join()


def _send_result(sender: Any, work: Callable[..., dict[str, Any]], words: tuple[Any, ...]) -> None:
    sender.send(work(*words))


def processor_seconds(process: int | None) -> float:
    """Return the processor time of a running process in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_engine(name: str, vectors: Path, folder: str, sets: tuple[Any, Any, Any], args: Any) -> dict[str, Any]:
    """Build, search and add with one engine. Return the row of the table; a step that was stopped ends it."""
    queries, truth, new = sets
    row: dict[str, Any] = {"engine": name, "count": args.count, "dim": queries.shape[1]}
    for work, words in (
        (built, (name, str(vectors), folder, args.threads)),
        (searched, (name, folder, queries, truth, args.recall, args.threads)),
        (added, (name, folder, new, args.count, args.threads)),
    ):
        found = run_apart(work, words, args.limit)
        if found is None:
            row["stopped"], row["limit_s"] = work.__name__, args.limit
            break
        row.update(found)
    return {**row, "number": args.number, "seed": args.seed}


def prepare(args: Any, scratch: Path) -> tuple[Path, np.ndarray, np.ndarray, np.ndarray]:
    """Write the vectors to a file. Return it, the queries, their true neighbours, and vectors that will be added."""
    import numpy as np
    from search_at_scale import HELD_OUT, mix

    from speechclip.data.embeddings import load_embeddings
    from speechclip.search.neighbours import exact_search

    real = load_embeddings(args.embeddings)[1]
    order = np.random.default_rng(args.seed).permutation(len(real))
    held = max(4, round(HELD_OUT * len(real)))
    path = scratch / "vectors.npy"
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(args.count, real.shape[1]))
    for number, start in enumerate(range(0, args.count, 1_000_000)):
        size = min(1_000_000, args.count - start)
        stored[start : start + size] = mix(real[order[held:]], size, args.seed + 1 + 100 * number)
    queries = mix(real[order[:held]], args.number, args.seed + 2)
    new = mix(real[order[held:]], ADDED, args.seed + 3)
    return path, queries, exact_search(stored, queries, TOP_K)[0], new


def record(path: Path, section: str, row: dict[str, Any], command: str) -> None:
    """Add a row to a section of the results. It replaces the row of the same engine and number of vectors."""
    from measure import machine

    from speechclip.common.provenance import commit

    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = [
        old for old in results.get(section, {}).get("rows", [])
        if (old["engine"], old["count"]) != (row["engine"], row["count"])
    ]  # fmt: skip
    row = {**row, "origin": {"machine": machine(), "commit": commit(), "command": command}}
    rows = sorted([*rows, row], key=lambda one: (one["count"], NAMES.index(one["engine"])))
    results[section] = {"rows": rows, **row["origin"]}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


@exit_on_user_error
def main() -> None:
    """Measure each engine and print a table."""
    parser = ArgumentParser(prog="search_engines.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--embeddings", required=True, metavar="NPZ", help="real embeddings (ids, embeddings)")
    parser.add_argument("--count", type=int, default=1_000_000, help="number of vectors")
    parser.add_argument("--engines", nargs="+", choices=NAMES, default=list(NAMES), help="engines to measure")
    parser.add_argument("--number", type=int, default=300, help="number of queries")
    parser.add_argument("--recall", type=float, default=0.95, help="least recall@10")
    parser.add_argument("--threads", type=int, default=1, help="number of cores")
    parser.add_argument("--limit", type=float, default=900.0, help="most processor seconds of a step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the vectors and the queries")
    parser.add_argument("--out", default="", metavar="DIR", help="parent of the temporary files")
    parser.add_argument(
        "--results", default="", metavar="FILE", help="write the figures to this file of results, results.json"
    )
    args = parser.parse_args()
    if min(args.count, args.number, args.threads) < 1:
        parser.error("--count, --number and --threads must be at least 1")
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    args.threads = len(cores)
    os.sched_setaffinity(0, cores)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LANCE_CPU_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(len(cores))

    with tempfile.TemporaryDirectory(dir=args.out or None) as scratch:
        vectors, queries, truth, new = prepare(args, Path(scratch))
        for name in args.engines:
            folder = str(Path(scratch) / name)
            row = measure_engine(name, vectors, folder, (queries, truth, new), args)
            if "stopped" in row:
                print(f"{name}: {row['stopped']} was stopped after {args.limit:g} s of processor time", flush=True)
            else:
                best = row["settings"][-1]
                found = f"recall {best['recall']:.3f} in {best['median_ms']:.2f} ms; add {row['add_s']:.1f} s"
                print(f"{name}: build {row['build_cpu_s']:.0f} s, {row['build_gb']:.2f} GB; {found}", flush=True)
            if args.results:
                words = f"--engines {' '.join(args.engines)} --count {args.count} --number {args.number}"
                command = f"tools/bench/search_engines.py {words} --threads {args.threads} --seed {args.seed}"
                record(Path(args.results), f"search_engines_{args.count}", row, command)
            import engines

            engines.remove(Path(folder))


if __name__ == "__main__":
    main()
