"""Print the summary at the end of a recipe: main scores, reports, and what to try next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.constants import KEYWORDS, RETRIEVAL, SCORES
from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import read_json

_NAME = 28  # width of the first column
_DIRECTIONS = ("speech->image", "image->speech")
_CUTOFFS = ("R@1", "R@10")


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Print at most 80 columns for the given runs."""
    parser = ArgumentParser(prog="speechclip.bin.summary", description=__doc__)
    parser.add_argument("--exp", nargs="+", required=True, type=Path, metavar="DIR", help="folders of scored runs")
    parser.add_argument("--results", type=Path, metavar="FILE", help="the tables that the report wrote")
    options = parser.parse_args(argv)
    print("\n".join(summary(options.exp, options.results)))


def summary(folders: Sequence[Path], results: Path | None) -> list[str]:
    """Return the lines of the summary.

    Args:
        folders: experiment folders with scores/retrieval.json, and scores/keywords.json for heads with keywords.
        results: the file of the tables, or None.

    Raises:
        UserError: a score is missing or is not a number.
    """
    retrieval = {folder: read_json(folder / SCORES / RETRIEVAL) for folder in folders}
    lines = ["", "Retrieval on the test split, recall in percent", *_retrieval_table(retrieval)]
    keywords = {folder: _keywords(folder) for folder in folders}
    if any(keywords.values()):
        lines += ["", "Keywords on the test split, percent that are a word of the caption"]
        for folder, row in keywords.items():
            if row:
                path = folder / SCORES / KEYWORDS
                prior = _number(path, row, "frequency_prior", "content_top1", "avg")
                value = _number(path, row, "content_top1", "avg")
                lines.append(f"  {_short(folder.name)}{value:8.1f}   most frequent subwords {prior:5.1f}")
    pages = [folder / "report" / "index.html" for folder in folders]
    lines += ["", *(f"Page:    {page}" for page in pages if page.is_file())]
    lines += [f"Tables:  {results}"] if results is not None else []
    return [*lines, "", "Next:", *_next_steps(folders)]


def _retrieval_table(reports: Mapping[Path, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a row for each run, then the topline (written captions) and chance of the first run."""
    yield f"  {'':{_NAME}}{'speech -> image':>16}   {'image -> speech':>16}"
    heads = "".join(f"{cutoff:>8}" for cutoff in _CUTOFFS)
    yield f"  {'':{_NAME}}{heads}   {heads}"
    for folder, report in reports.items():
        path = folder / SCORES / RETRIEVAL
        cells = [[_number(path, report, name, cutoff) for cutoff in _CUTOFFS] for name in _DIRECTIONS]
        yield _row(folder.name, cells)
    folder, report = next(iter(reports.items()))
    path = folder / SCORES / RETRIEVAL
    if "text->image" in report:
        yield _row("topline: written captions", [[_number(path, report, "text->image", cutoff) for cutoff in _CUTOFFS]])
    yield _row("chance", [[_number(path, report, "random", n, cutoff) for cutoff in _CUTOFFS] for n in _DIRECTIONS])


def _row(name: str, cells: Sequence[Sequence[float]]) -> str:
    return f"  {_short(name)}" + "   ".join("".join(f"{value:8.1f}" for value in pair) for pair in cells)


def _short(name: str) -> str:
    """Return a name in exactly ``_NAME`` columns. A long name loses its middle, because seeds are at the end."""
    if len(name) >= _NAME:
        name = f"{name[: _NAME // 2]}...{name[-(_NAME // 2 - 4) :]}"
    return f"{name:{_NAME}}"


def _keywords(folder: Path) -> dict[str, Any] | None:
    """Read the keyword scores of a run; None for a head without keywords."""
    try:
        return read_json(folder / SCORES / KEYWORDS)
    except MissingFileError:
        return None


def _number(path: Path, content: Any, *keys: str) -> float:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    if isinstance(content, bool) or not isinstance(content, (int, float)):
        raise UserError(f"{path}: {' / '.join(keys)} is missing or is not a number. Score the run again.")
    return float(content)


def _next_steps(folders: Sequence[Path]) -> Iterator[str]:
    """Yield commands that a user may want to run next, with a path that fits the present folder."""
    best = next((folder / "best" for folder in folders if (folder / "best").is_dir()), None)
    if best is not None:
        yield "  . ./path.sh    # puts speechclip and tensorboard on the PATH"
        yield f"  speechclip index --model {shlex.quote(os.fspath(best))} \\"
        yield "      --images data/test --out exp/index"
        yield "  speechclip serve --index exp/index    # search images by voice"
        yield "  tensorboard --logdir exp    # curves, attention, embeddings"
    yield '  ./run.sh --seed "0 1 2"    # means over three seeds'
    yield "  ./run.sh --stage 7    # pack the runs for another machine"


if __name__ == "__main__":
    main()
