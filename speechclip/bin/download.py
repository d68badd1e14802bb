"""Download a corpus or the original files of the encoders, with mirrors, resume and checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Download the files that a folder lacks. A second call resumes a download that was interrupted."""
    parser = ArgumentParser(prog="speechclip.bin.download", description=__doc__)
    parser.add_argument(
        "--what", required=True, metavar="NAME", help="a corpus (flickr8k), or the encoders of a model (base, large)"
    )  # fmt: skip
    parser.add_argument("--to", required=True, metavar="DIR", help="folder of the downloaded files")
    parser.add_argument("--mirror", default="", metavar="URL", help="folder of files that is tried first")
    parser.add_argument("--only", default="", metavar="WORDS", help="download only files that begin with one of them")
    args = parser.parse_args(argv)

    from speechclip.data.corpora.download import download
    from speechclip.data.corpora.registry import corpus_names, find_corpus
    from speechclip.data.corpora.sources import ENCODERS

    if args.what in ENCODERS:
        download(ENCODERS[args.what], Path(args.to), mirror=args.mirror)
        return
    corpora = {name: find_corpus(name).download for name in corpus_names()}
    get = corpora.get(args.what)
    if get is None:
        known = [*ENCODERS, *(name for name in corpora if corpora[name])]
        parser.error(f"--what: unknown name '{args.what}' (known: {' '.join(known)})")
    get(args.to, args.mirror, args.only.split())


if __name__ == "__main__":
    main()
