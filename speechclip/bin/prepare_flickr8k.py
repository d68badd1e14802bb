"""Prepare Flickr8k: data/{train,dev,test} and data/skipped.tsv from the corpus as it is published."""

from __future__ import annotations

import os
from collections.abc import Sequence

from speechclip.bin import ArgumentParser
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Print the size of each split and the number of utterances skipped, by reason."""
    parser = ArgumentParser(prog="prepare_flickr8k", description=__doc__)
    parser.add_argument("--corpus", required=True, metavar="DIR", help="folder with photographs, captions, recordings")
    parser.add_argument("--out", default="data", metavar="DIR", help="where the data directories go")
    parser.add_argument("--max_bad", type=float, default=0.01, help="share of the utterances that may be skipped")
    parser.add_argument("--min_seconds", type=float, default=0.3, help="shortest utterance taken")
    parser.add_argument("--max_seconds", type=float, default=60.0, help="longest utterance taken")
    parser.add_argument(
        "--check_samples",
        choices=("true", "false"),
        default="true",
        help="decode all audio but integer wav to check it",
    )
    parser.add_argument("--nj", type=int, default=min(4, os.cpu_count() or 1), help="number of processes")
    args = parser.parse_args(argv)

    from speechclip.data.corpora.flickr8k import prepare_flickr8k

    summary = prepare_flickr8k(
        args.corpus,
        args.out,
        max_bad=args.max_bad,
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        check_samples=args.check_samples == "true",
        nj=args.nj,
    )
    print(summary)


if __name__ == "__main__":
    main()
