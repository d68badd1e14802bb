"""Test two systems over all their seeds, or the second stage of one system against its coarse scores.

A test exchanges whole images between the systems: all queries of an image, of every seed. See
:mod:`speechclip.eval.significance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.constants import SCORES


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Print the means over seeds, their differences, intervals and p."""
    parser = ArgumentParser(prog="speechclip.bin.compare", description=__doc__)
    parser.add_argument("--first", nargs="+", required=True, metavar="EXP", help="runs of a system, one for each seed")
    parser.add_argument(
        "--second", nargs="+", default=[], metavar="EXP",
        help="runs of another system with the same seeds (default: the coarse scores of the first)",
    )  # fmt: skip
    parser.add_argument("--permutations", type=int, default=10000, help="number of random exchanges")
    parser.add_argument("--seed", type=int, default=0, help="seed of the exchanges and resamples")
    args = parser.parse_args(argv)
    if args.permutations < 1:
        parser.error(f"--permutations: {args.permutations} is not at least 1")
    if args.second and len(args.second) != len(args.first):
        parser.error(f"--second: has {len(args.second)} runs and --first has {len(args.first)}. Give as many")

    from speechclip.eval.score_files import (
        CONTRIBUTIONS,
        RANKS,
        compare_keyword_files,
        compare_rank_files,
        compare_stage_files,
    )
    from speechclip.report.paired_lines import paired_lines

    first, second = ([Path(folder) / SCORES for folder in folders] for folders in (args.first, args.second))
    ranks = [folder / RANKS for folder in first]
    if not second:
        print("\n".join(paired_lines(compare_stage_files(ranks, args.permutations, args.seed), {})))
        return
    retrieval = compare_rank_files(ranks, [folder / RANKS for folder in second], args.permutations, args.seed)
    mine, theirs = ([folder / CONTRIBUTIONS for folder in folders] for folders in (first, second))
    print("\n".join(paired_lines(retrieval, compare_keyword_files(mine, theirs, args.permutations, args.seed))))


if __name__ == "__main__":
    main()
