"""List the published models with size, corpus, validation score and cache state."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.errors import MissingFileError, UserError

if TYPE_CHECKING:
    from speechclip.checkpoint.published import PublishedModel

COLUMNS = ("name", "size", "corpus", "published", "cache")


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Print one line for each name that SpeechCLIP.from_pretrained accepts."""
    parser = ArgumentParser(prog="speechclip models", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON with the address of each model")
    parser.add_argument("--sizes", action="store_true", help="ask the hosts for the sizes of files that are not cached")
    args = parser.parse_args(argv)

    from speechclip.checkpoint.pretrained import MINI
    from speechclip.checkpoint.published import (
        MANUAL_FOLDER,
        MANUAL_MODELS,
        PUBLISHED_MODELS,
        cache_folder,
        cached_file,
        downloaded_bytes,
        manual_path,
    )

    announced = _announced(list(PUBLISHED_MODELS.values())) if args.sizes else {}
    rows = {MINI: {"name": MINI, "corpus": "mini recipe", "published": "", **_mini()}}
    for name, model in PUBLISHED_MODELS.items():
        complete, count = cached_file(model).is_file(), downloaded_bytes(model)
        # The sizes are not published. The hosts announce them on request.
        size = model.bytes or (count if complete else 0) or announced.get(name, 0)
        rows[name] = {
            "name": name,
            "size": _megabytes(size) if size else "unknown",
            "corpus": model.corpus,
            "published": model.score,
            "cache": "complete" if complete else f"partial, {_megabytes(count)}" if count else "-",
        }
    for name in MANUAL_MODELS:
        bundle = manual_path(name)
        rows[name] = {
            "name": name,
            "size": _megabytes(bundle.stat().st_size) if bundle.is_file() else "unknown",
            "corpus": "SpokenCOCO",
            "published": "",
            "cache": "complete" if bundle.is_file() else "-",
        }
    if args.json:
        urls = {name: model.url for name, model in PUBLISHED_MODELS.items()}
        print(json.dumps([{**row, "url": urls.get(name, "")} for name, row in rows.items()], indent=2))
        return
    table = [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows.values()]
    widths = {column: max(len(row[column]) for row in table) for column in COLUMNS}
    for row in table:
        print("  ".join(row[column].ljust(widths[column]) for column in COLUMNS).rstrip())
    print(f"{', '.join(MANUAL_MODELS)}: copy best_bundle.pth and args.pkl of the authors by hand into "
          f"{cache_folder()}/NAME, from {MANUAL_FOLDER}")  # fmt: skip
    print(f"published: mean recall on the validation set, both directions, percent. Cache: {cache_folder()}")
    if not args.sizes:
        print("size: of the cached file. --sizes asks the hosts for the other sizes.")


def _announced(models: Sequence[PublishedModel]) -> dict[str, int]:
    """Return the sizes in bytes that the hosts announce, by name. Warn once about those that do not answer."""
    from speechclip.checkpoint.published import cached_file
    from speechclip.data.corpora.download import announced_bytes

    missing = [model for model in models if not cached_file(model).is_file()]
    sizes, problems = dict[str, int](), list[str]()
    with ThreadPoolExecutor(len(missing) or 1) as pool:
        waiting = {model.name: pool.submit(announced_bytes, model.url) for model in missing}
        for name, answer in waiting.items():
            try:
                sizes[name] = answer.result()
            except UserError as error:
                problems.append(str(error))
    if problems:
        print(f"warning: {len(problems)} sizes are unknown. The first problem is {problems[0]}", file=sys.stderr)
    return sizes


def _mini() -> dict[str, str]:
    """Return size and state of the mini model. It is a part of the package, with its encoders next to it."""
    from speechclip.checkpoint.pretrained import mini_folder

    try:
        folder = mini_folder()
    except MissingFileError:
        return {"size": "unknown", "cache": "not installed"}
    files = (path for part in (folder, folder.parent / "hubert", folder.parent / "clip") for path in part.rglob("*"))
    return {"size": _megabytes(sum(path.stat().st_size for path in files if path.is_file())), "cache": "installed"}


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
