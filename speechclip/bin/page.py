"""Write the page of a scored run, or of two runs side by side with the significance of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import ArgumentParser
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Of two runs, print a line for each direction and score with its p-value (paired permutation test over images)."""
    parser = ArgumentParser(prog="speechclip report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="one or two experiment folders with scores/")
    parser.add_argument("--permutations", type=int, default=10000, help="random exchanges of images between the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the exchanges")
    args = parser.parse_args(argv)
    if args.permutations < 1:
        parser.error(f"--permutations: {args.permutations} is not at least 1")
    if len(args.runs) > 2:
        parser.error(f"RUN: one or two are needed, not {len(args.runs)}")
    if len(args.runs) == 2:
        _compare(args.runs, args.permutations, args.seed)


def _compare(folders: Sequence[str], permutations: int, seed: int) -> None:
    from speechclip.eval.significance import compare_runs

    first, second = (Path(folder) / "scores" / "ranks.npz" for folder in folders)
    print(f"{'direction':28}{'score':6}{'first':>8}{'second':>8}{'diff':>8}{'p':>9}")
    for direction, table in compare_runs(first, second, n=permutations, seed=seed).items():
        for score, row in table.items():
            numbers = "".join(f"{row[key]:8.2f}" for key in ("first", "second", "difference"))
            print(f"{direction:28}{score:6}{numbers}{row['p']:9.4f}")


if __name__ == "__main__":
    main()
