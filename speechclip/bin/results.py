"""Write what runs have scored: their rows into a results file, their figures, and a page of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
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

    from speechclip.report.figures.run_figures import write_figures
    from speechclip.report.results.update import update_results
    from speechclip.report.runs import load_run

    runs = [load_run(directory) for directory in args.exp]
    update_results(args.out, runs, args.recipe)
    print(f"wrote {args.out}: rows of {len(runs)} run{'s' if len(runs) > 1 else ''}")
    for run in runs:
        for path in write_figures(run.directory):
            print(f"wrote {path}")
        if args.data_dir:
            from speechclip.report.page.eval_split import load_eval_split
            from speechclip.report.page.page import write_page

            eval_split = load_eval_split(run, args.data_dir, args.dump_dir)
            print(f"wrote {write_page(run, eval_split, args.recipe, run.directory / 'report' / 'index.html')}")


if __name__ == "__main__":
    main()
