"""``speechclip report``: write the HTML page of a scored run, or a page that compares two runs."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.errors import UserError

if TYPE_CHECKING:
    from speechclip.report.page.eval_split import EvalSplit
    from speechclip.report.runs import Run


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of one run, or compare two runs with paired tests over images."""
    parser = ArgumentParser(prog="speechclip report", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="one or two experiment folders with scores/")
    parser.add_argument("--out", metavar="FILE", help="file of the page; default: in report/ of the first run")
    parser.add_argument(
        "--data_dir", metavar="DIR", help="data directory of the split; default: the one in the scores' command"
    )
    parser.add_argument(
        "--dump_dir", metavar="DIR", help="features of the split; default: the one in the scores' command"
    )
    parser.add_argument("--recipe", help="recipe whose published numbers are shown; default: the folder above exp/")
    parser.add_argument("--utterances", type=int, default=1000, help="largest number of utterances in the list")
    parser.add_argument("--recordings", type=int, default=200, help="largest number of recordings")
    parser.add_argument("--permutations", type=int, default=10000, help="number of permutations of the tests")
    parser.add_argument("--seed", type=int, default=0, help="seed of the permutations")
    args = parser.parse_args(argv)
    for name in ("utterances", "recordings", "permutations"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: {getattr(args, name)} is not at least 1")
    if len(args.runs) > 2:
        parser.error(f"RUN: one or two runs are needed, not {len(args.runs)}")

    from speechclip.report.runs import load_run

    runs = [load_run(Path(folder).absolute()) for folder in args.runs]
    out = Path(args.out).absolute() if args.out else None
    for folder in ("data_dir", "dump_dir"):
        if getattr(args, folder):
            setattr(args, folder, str(Path(getattr(args, folder)).absolute()))
    written = _one(runs[0], out, args) if len(runs) == 1 else _two(runs, out, args)
    print(f"wrote {written}")


def _one(run: Run, out: Path | None, args: Namespace) -> Path:
    from speechclip.report.page.page import Limits, write_page

    recipe = args.recipe or run.directory.resolve().parent.parent.name
    eval_split = _eval_split(run, args)
    limits = Limits(args.utterances, args.recordings)
    return write_page(run, eval_split, recipe, out or run.directory / "report" / "index.html", limits)


def _two(runs: Sequence[Run], out: Path | None, args: Namespace) -> Path:
    from speechclip.report.page.comparison import keyword_tests, paired_tests, run_names, write_comparison
    from speechclip.report.paired_lines import paired_lines

    names = run_names(runs)
    tests = paired_tests(runs, args.permutations, args.seed)
    keywords = keyword_tests(runs, args.permutations, args.seed)
    print("\n".join(paired_lines(tests, keywords)))
    eval_splits = [_eval_split(run, args) for run in runs]
    target = out or runs[0].directory / "report" / f"against_{names[1].replace('/', '_')}.html"
    return write_comparison(runs, eval_splits, tests, keywords, target, permutations=args.permutations)


def _eval_split(run: Run, args: Namespace) -> EvalSplit:
    """Read the split of a run. Its tables name files relative to the recipe, which becomes the current folder."""
    from speechclip.report.page.eval_split import load_eval_split, scored_on

    data, dump = args.data_dir, args.dump_dir
    if not (data and dump):
        named = scored_on(run)
        data, dump = data or named[0], dump or named[1]
    recipe = run.directory.resolve().parent.parent
    if not Path(data).is_absolute() and (recipe / data).is_dir():
        os.chdir(recipe)  # another recipe, in which the command may have been started, has a folder of the same name
    elif not Path(data).is_dir():
        raise UserError(f"{data}: no such folder, neither here nor in {recipe}. Give --data_dir and --dump_dir.")
    return load_eval_split(run, data, dump)


if __name__ == "__main__":
    main()
