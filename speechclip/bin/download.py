"""Download a corpus or the original files of the encoders, from mirrors, with resume and checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Get what is missing in a folder; a second call goes on where the first was cut."""
    parser = ArgumentParser(prog="download", description=__doc__)
    parser.add_argument(
        "--what", required=True, choices=("flickr8k", "spokencoco", "base", "large"),
        help="a corpus, or the encoders of a model",
    )  # fmt: skip
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to put it in")
    parser.add_argument("--mirror", default="", metavar="URL", help="try this folder of files first")
    args = parser.parse_args(argv)

    from dataclasses import replace

    from speechclip.data.corpora.download import download
    from speechclip.data.corpora.sources import SOURCES

    remotes = SOURCES[args.what]
    if args.mirror:
        remotes = tuple(replace(r, urls=(f"{args.mirror.rstrip('/')}/{r.name}", *r.urls)) for r in remotes)
    download(remotes, Path(args.to))


if __name__ == "__main__":
    main()
