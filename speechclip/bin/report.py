"""Write what runs have scored: their rows into a results file, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import ArgumentParser
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Merge the rows of all runs, draw the figures of each, and print one line for every file written."""
    parser = ArgumentParser(prog="report", description=__doc__)
    parser.add_argument("--exp", nargs="+", required=True, metavar="DIR", help="folders of scored runs")
    parser.add_argument("--out", default="RESULTS.md", metavar="FILE", help="the results file, created when missing")
    parser.add_argument(
        "--recipe", default=Path.cwd().name, help="whose published tables to set beside the rows, where there are any"
    )
    args = parser.parse_args(argv)

    from speechclip.report.figures import write_figures
    from speechclip.report.results import update_results
    from speechclip.report.runs import load_run

    runs = [load_run(directory) for directory in args.exp]
    update_results(args.out, runs, args.recipe)
    print(f"wrote {args.out}: rows of {len(runs)} run{'s' if len(runs) > 1 else ''}")
    for run in runs:
        for path in write_figures(run.directory):
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
