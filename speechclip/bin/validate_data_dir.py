"""Validate Kaldi data directories: ids, order, captions, agreement between tables, and the existence of all files."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.errors import UserError


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Print one line per directory. Exit with the first problem of a bad one; ``--list`` prints all problems."""
    parser = ArgumentParser(prog="speechclip.bin.validate_data_dir", description=__doc__)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a data directory, e.g. data/train")
    parser.add_argument("--list", action="store_true", help="print every problem, not only the first")
    args = parser.parse_args(argv)

    from speechclip.data.kaldi import DataDir, find_problems

    if args.list:
        problems = [problem for directory in args.directories for problem in find_problems(directory)]
        print("\n".join(problems), end="\n" if problems else "")
        if problems:
            raise UserError(f"{len(problems)} problems in {len(args.directories)} data directories. Correct them.")
    for directory in args.directories:
        data = DataDir.load(directory)
        counts = f"{len(data.utterances)} utterances, {len(data.images)} images, {len(data.speakers)} speakers"
        if data.languages:
            counts += f", languages: {' '.join(data.languages)}"
        print(f"{directory}: valid: {counts}")


if __name__ == "__main__":
    main()
