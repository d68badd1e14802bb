"""Write what runs have scored: their rows into a results file, their figures, and a page of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import ArgumentParser
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Merge the rows of all runs, draw the figures and the page of each; print one line for every file written."""
    parser = ArgumentParser(prog="report", description=__doc__)
    parser.add_argument("--exp", nargs="+", required=True, metavar="DIR", help="folders of scored runs")
    parser.add_argument("--out", default="RESULTS.md", metavar="FILE", help="the results file, created when missing")
    parser.add_argument(
        "--recipe", default=Path.cwd().name, help="whose published tables to set beside the rows, where there are any"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="the split that was scored; without it no page is written")
    parser.add_argument("--dump_dir", metavar="DIR", help="what stage 2 stored for it")
    args = parser.parse_args(argv)
    if bool(args.data_dir) != bool(args.dump_dir):
        parser.error("--data_dir and --dump_dir: give both or none")

    from speechclip.report.figures import write_figures
    from speechclip.report.results import update_results
    from speechclip.report.runs import load_run

    runs = [load_run(directory) for directory in args.exp]
    update_results(args.out, runs, args.recipe)
    print(f"wrote {args.out}: rows of {len(runs)} run{'s' if len(runs) > 1 else ''}")
    for run in runs:
        for path in write_figures(run.directory):
            print(f"wrote {path}")
        if args.data_dir:
            from speechclip.report.material import load_material
            from speechclip.report.page import write_page

            material = load_material(run, args.data_dir, args.dump_dir)
            print(f"wrote {write_page(run, material, args.recipe, run.directory / 'report' / 'index.html')}")


if __name__ == "__main__":
    main()
