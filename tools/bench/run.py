#!/usr/bin/env python3
"""Measure this project against plain baselines, in turn, in one run on one machine.

Usage: tools/bench/bench.sh [--only heads epoch ...] [--out FILE.json] [--document BENCHMARKS.md] ...
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sections import HEADS, ONLINE_BATCHES, ONLINE_HEADS, PRECISIONS, SECTIONS, SHAPES

HERE = Path(__file__).resolve().parent


def arguments(argv: list[str]) -> Any:
    """Parse the command line."""
    from speechclip.common.arguments import ArgumentParser

    parser = ArgumentParser(prog="tools/bench/bench.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to measure, in this order; default: all")
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=SHAPES,
        default=list(SHAPES),
        help="model sizes of heads, extraction_cuda and online_cuda",
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        choices=HEADS,
        help="heads to measure in the sections heads, epoch and online_cuda; default: all, in online_cuda "
        + " and ".join(ONLINE_HEADS),
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 8, 16], help="batch sizes of a training step")
    parser.add_argument(
        "--online_batches", nargs="+", type=int, default=list(ONLINE_BATCHES), help="batch sizes of online_cuda"
    )
    parser.add_argument(
        "--utterances",
        type=int,
        default=48,
        help="utterances in the corpora of extraction and store; epoch uses at most 16",
    )
    parser.add_argument("--images", type=int, default=5000, help="images that are scored, with five utterances each")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; in each, plain and ours run in turn")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument("--mini_log", default="", metavar="FILE", help="log of ./run.sh in egs/mini")
    parser.add_argument("--mini_commit", default="", help="commit of --mini_log, if it differs from the present one")
    parser.add_argument("--out", default=str(HERE / "results.json"), metavar="FILE", help="file of the results")
    parser.add_argument(
        "--document", default="", metavar="FILE", help="write the tables of --out as Markdown to this file"
    )
    parser.add_argument("--check", action="store_true", help="compare the ratios of small runs with floors.json")
    parser.add_argument("--child", default="", help="used by the benchmarks themselves")
    return parser.parse_args(argv)


def shown_words(argv: list[str]) -> list[str]:
    """Return the command line without --out, which does not matter to a reader."""
    at = argv.index("--out") if "--out" in argv else len(argv)
    return argv[:at] + argv[at + 2 :]


def keys(options: Any) -> list[str]:
    """Return the keys of the results to measure.

    Every size and head of the section "heads" has its own key, and every size of "online_cuda", so that a stopped run
    keeps the finished ones.
    """
    chosen = options.only or ([] if options.document else SECTIONS)
    several = {
        "heads": [f"heads_{shape}_{head}" for shape in options.shapes for head in options.heads or HEADS],
        "online_cuda": [f"online_cuda_{shape}" for shape in options.shapes],
    }
    return [key for name in chosen for key in several.get(name, [name])]


def section(name: str, options: Any) -> Callable[[], list[dict[str, Any]]] | None:
    """Return the function that measures one key, or None if its input or a GPU is missing."""
    repeats, count = options.repeats, options.utterances
    if name == "mini":
        import mini

        return (lambda: mini.run(options.mini_log)) if options.mini_log else None
    if name == "startup":
        import startup

        return lambda: startup.run(repeats)
    if name == "scoring":
        import scoring

        return lambda: scoring.run(options.images, 5, repeats)
    if name == "store":
        import store

        return lambda: store.run("base", count, repeats)
    if name == "rerank":
        import rerank

        return lambda: rerank.run(images=1000, top_k=100, repeats=max(5, repeats))
    if name == "fine_scores":
        import fine_scores

        return lambda: fine_scores.run(repeats)
    if name == "growth":
        import growth

        return lambda: growth.run("base", repeats)
    if name == "extraction":
        return lambda: _extraction(count, repeats)
    if name == "extraction_cuda":
        import torch

        return (lambda: _extraction_cuda(options.shapes, count, repeats)) if torch.cuda.is_available() else None
    if name.startswith("online_cuda_"):
        import torch

        shape = name.rpartition("_")[2]
        return (lambda: _online_cuda(shape, options)) if torch.cuda.is_available() else None
    import steps

    if name == "epoch":
        return lambda: steps.epoch(
            "base", tuple(options.heads or HEADS), min(count, steps.EPOCH_UTTERANCES), 8, repeats
        )
    _, shape, head = name.split("_", 2)
    return lambda: steps.run(shape, head, tuple(options.batches), repeats)


def _extraction(count: int, repeats: int) -> list[dict[str, Any]]:
    import extraction

    some, rows = max(8, count // 3), extraction.run("base", count, repeats)
    rows += extraction.by_part("base", repeats) + extraction.by_batch("base", some)
    return rows + extraction.by_threads("base", some) + extraction.compiled("base", repeats)


def _extraction_cuda(shapes: list[str], count: int, repeats: int) -> list[dict[str, Any]]:
    import extraction
    import torch

    rows: list[dict[str, Any]] = []
    for shape in shapes:
        rows += extraction.run(shape, 8 * count, repeats, "cuda", "fp32")
        rows += extraction.run(shape, 8 * count, repeats, "cuda", "bf16", torch.compile)
        torch._dynamo.reset()
    return rows


def _online_cuda(shape: str, options: Any) -> list[dict[str, Any]]:
    import online

    heads, batches = options.heads or ONLINE_HEADS, options.online_batches
    return online.run(shape, heads, batches, options.repeats, "cuda", PRECISIONS)


def child(request: dict[str, Any]) -> None:
    """Print the peak memory of one function as JSON."""
    import measure
    import steps

    if request.pop("work") != "step":
        raise SystemExit("unknown function")
    step = steps.make_step(**request)
    print(json.dumps({"peak": measure.peak_of(step)}))


def main(argv: list[str]) -> int:
    """Measure, write the results, or check them."""
    options = arguments(argv)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before the first import of numpy and torch
    import torch

    torch.set_num_threads(options.threads)
    if options.child:
        child(json.loads(options.child))
        return 0
    if options.check:
        import check

        return check.main()
    import measure

    from speechclip.common.provenance import commit

    out = Path(options.out)
    # read before the results are written: a changed results file does not mean changed code
    measured_at = commit()
    held: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    for name in keys(options):
        work = section(name, options)
        if work is None:
            print(f"{name}: skipped, needs {'--mini_log' if name == 'mini' else 'a GPU'}", flush=True)
            continue
        before = measure.machine()
        command, at = f"tools/bench/bench.sh {' '.join(shown_words(argv))}".strip(), measured_at
        if name == "mini":
            command, at = "./run.sh", options.mini_commit or at
            before |= {"load": [], "threads": before["cores"]}
        held[name] = {"rows": work(), "machine": before, "commit": at, "command": command}
        out.write_text(json.dumps(held, indent=1) + "\n")
    if options.document:
        import document

        document.write(held, Path(options.document))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
