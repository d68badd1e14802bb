"""Write the tables, figures and pages of scored runs, or add runs to the committed results of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Write tables, data, figures and pages of all runs. Print one line for every file."""
    parser = ArgumentParser(prog="speechclip.bin.results", description=__doc__)
    parser.add_argument("--exp", nargs="+", default=[], metavar="DIR", help="folders of scored runs")
    parser.add_argument("--out", default="exp/RESULTS.md", metavar="FILE", help="tables; results.jsonl is next to it")
    parser.add_argument(
        "--recipe", default=Path.cwd().name, help="name of the recipe, for published tables (default: current folder)"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="scored data directory; without it no page is written")
    parser.add_argument("--dump_dir", metavar="DIR", help="folder with its stored features")
    parser.add_argument(
        "--commit_to", metavar="DIR", help="add the runs to DIR/results.jsonl and render DIR/RESULTS.md, nothing else"
    )
    parser.add_argument(
        "--replace", action="store_true", help="with --commit_to: drop rows of these runs of other commits"
    )
    parser.add_argument(
        "--transcripts", nargs="+", default=[], metavar="FILE", help="transcripts of recognisers that the pages show"
    )
    parser.add_argument(
        "--conditions_figure", metavar="STEM", help="path without a suffix of the figure of the listening conditions"
    )
    parser.add_argument(
        "--steps", nargs="+", default=[], metavar="STEP",
        help='with --commit_to: add these steps only, such as spotting or "retrieval test_unseen"',
    )  # fmt: skip
    args = parser.parse_args(argv)
    if bool(args.data_dir) != bool(args.dump_dir):
        parser.error("--data_dir and --dump_dir: give both or none")
    if not args.exp and not args.commit_to:
        parser.error("--exp: give at least one folder")
    for name in ("replace", "steps"):
        if getattr(args, name) and not args.commit_to:
            parser.error(f"--{name}: needs --commit_to")
    if args.replace and args.steps:
        parser.error("--steps: adds rows, and --replace drops those of other steps. Give one of them")

    from speechclip.report.results.document import DATA, DOCUMENT, commit_results, update_results
    from speechclip.report.runs import load_run

    runs = [load_run(directory) for directory in args.exp]
    if args.commit_to:
        folder = Path(args.commit_to)
        rows = commit_results(folder, runs, replace=args.replace, steps=args.steps)
        if rows:
            print(f"wrote {folder / DATA}: {len(rows)} rows")
        print(f"wrote {folder / DOCUMENT}")
        return

    from speechclip.report.figures.run_figures import write_figures
    from speechclip.report.page.recordings import Recordings

    out = Path(args.out)
    rows = update_results(out, runs, args.recipe)
    print(f"wrote {out.parent / DATA}: {len(rows)} rows")
    print(f"wrote {out}")
    if args.conditions_figure:
        from speechclip.report.figures.condition_curves import write_condition_figure

        for path in write_condition_figure(runs, Path(args.conditions_figure)):
            print(f"wrote {path}")
    recordings = Recordings()
    for run in runs:
        for path in write_figures(run.directory):
            print(f"wrote {path}")
        if args.data_dir:
            from speechclip.report.page.eval_split import load_eval_split
            from speechclip.report.page.page import write_page

            eval_split = load_eval_split(run, args.data_dir, args.dump_dir, args.transcripts)
            page = run.directory / "report" / "index.html"
            print(f"wrote {write_page(run, eval_split, args.recipe, page, recordings=recordings)}")


if __name__ == "__main__":
    main()
