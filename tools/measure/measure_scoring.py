#!/usr/bin/env python3
"""Measure the time and memory of retrieval scoring on generated embeddings, and check that its ranks are exact.

The embeddings are small integers. So every dot product is exact in any order of summation, and there are many ties. The
ranks of some queries are counted again in 64-bit integers, one query at a time.

Usage: tools/measure/measure_scoring.py [--queries 25031] [--gallery 5000] [--dim 512] [--only N] [--seed 0]
       --only N scores N of the queries. The time of all queries is estimated from them.
"""

from __future__ import annotations

import resource
import time

import numpy as np

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

CHECKED = 50  # queries


def whole_numbers(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Return random integers from -4 to 4 as float32 [rows, dim], in little extra memory."""
    made = np.empty((rows, dim), dtype=np.float32)
    for at in range(0, rows, 1 << 14):
        part = made[at : at + (1 << 14)]
        part[:] = rng.integers(-4, 5, part.shape, dtype=np.int8)
    return made


def exact_rank(query: np.ndarray, gallery: np.ndarray, relevant: np.ndarray) -> int:
    """Return the rank of the best relevant item, computed in integers, with ties against the system."""
    scores = np.concatenate(
        [gallery[at : at + 4096].astype(np.int64) @ query.astype(np.int64) for at in range(0, len(gallery), 4096)]
    )
    return 1 + int(((scores >= scores[relevant].max()) & ~relevant).sum())


@exit_on_user_error
def main() -> None:
    """Measure and print. Item i is relevant for query i, modulo the smaller number."""
    parser = ArgumentParser(prog="measure_scoring.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=25031, help="number of queries")
    parser.add_argument("--gallery", type=int, default=5000, help="number of items in the gallery")
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--only", type=int, default=0, help="number of queries to score, 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the embeddings and of the checked queries")
    args = parser.parse_args()

    from speechclip.common.provenance import commit
    from speechclip.eval.ranking import first_hit_ranks

    if min(args.queries, args.gallery, args.dim) < 1 or args.only < 0:
        raise UserError("--queries, --gallery and --dim have to be at least 1, --only not negative")

    rng = np.random.default_rng(args.seed)
    queries, gallery = (whole_numbers(rng, count, args.dim) for count in (args.queries, args.gallery))
    groups = min(args.queries, args.gallery)
    asked, listed = np.arange(args.queries) % groups, np.arange(args.gallery) % groups
    scored = min(args.only or args.queries, args.queries)
    started, cpu = time.perf_counter(), time.process_time()
    ranks = first_hit_ranks(queries[:scored], gallery, asked[:scored], listed)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux gives kB
    drawn = rng.choice(scored, size=min(CHECKED, scored), replace=False)
    wrong = [at for at in drawn if exact_rank(queries[at], gallery, listed == asked[at]) != ranks[at]]
    whole = f", {seconds * args.queries / scored:,.0f} s for all" if scored < args.queries else ""
    print(f"{args.queries:,} x {args.gallery:,}, {args.dim} dimensions, seed {args.seed}, commit {commit()}:")
    print(f"  {scored:,} queries in {seconds:.1f} s ({cpu:.1f} s of CPU time){whole}; peak memory {peak:.2f} GB")
    print(f"  {len(drawn) - len(wrong)} of {len(drawn)} ranks equal those counted in integers")
    if wrong:
        raise UserError(f"query {wrong[0]}: rank {ranks[wrong[0]]} is wrong")


if __name__ == "__main__":
    main()
