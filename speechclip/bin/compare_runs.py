"""Compare two scored runs on the same test set: differences in recall and whether they are more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import ArgumentParser
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each direction and score, with the p-value of a paired permutation test over images."""
    parser = ArgumentParser(prog="compare_runs", description=__doc__)
    parser.add_argument("--first", required=True, metavar="DIR", help="an experiment folder with scores/")
    parser.add_argument("--second", required=True, metavar="DIR", help="another one")
    parser.add_argument("--permutations", type=int, default=10000, help="random exchanges of images between the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the exchanges")
    args = parser.parse_args(argv)
    if args.permutations < 1:
        parser.error(f"--permutations: {args.permutations} is not at least 1")

    from speechclip.eval.significance import compare_runs

    first, second = (Path(folder) / "scores" / "ranks.npz" for folder in (args.first, args.second))
    print(f"{'direction':28}{'score':6}{'first':>8}{'second':>8}{'diff':>8}{'p':>9}")
    for direction, table in compare_runs(first, second, n=args.permutations, seed=args.seed).items():
        for score, row in table.items():
            numbers = "".join(f"{row[key]:8.2f}" for key in ("first", "second", "difference"))
            print(f"{direction:28}{score:6}{numbers}{row['p']:9.4f}")


if __name__ == "__main__":
    main()
