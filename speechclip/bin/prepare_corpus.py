"""Stage 1: prepare data/{train,dev,test} and data/skipped.tsv from a published corpus."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.devices import cpu_count


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Write the data directories. Print the size of each split and the number of skipped utterances by reason."""
    parser = ArgumentParser(prog="speechclip.bin.prepare_corpus", description=__doc__)
    parser.add_argument("--name", required=True, help="name of the corpus: a module of speechclip/data/corpora")
    parser.add_argument("--corpus", required=True, metavar="DIR", help="folder with photographs, captions, recordings")
    parser.add_argument("--out", default="data", metavar="DIR", help="folder of the data directories")
    parser.add_argument("--max_bad", type=float, help="fraction of the utterances that may be skipped")
    parser.add_argument("--min_seconds", type=float, help="shorter utterances are skipped")
    parser.add_argument("--max_seconds", type=float, help="longer utterances are skipped")
    parser.add_argument("--check_samples", choices=("true", "false"), help="decode all audio to check it")
    parser.add_argument("--nj", type=int, default=min(4, cpu_count()), help="number of processes")
    args = parser.parse_args(argv)

    from dataclasses import replace

    from speechclip.data.corpora.registry import corpus_names, find_corpus

    if args.name not in corpus_names():
        parser.error(f"--name: unknown corpus '{args.name}' (known: {' '.join(corpus_names())})")
    corpus = find_corpus(args.name)
    given = {
        key: getattr(args, key) for key in ("max_bad", "min_seconds", "max_seconds") if getattr(args, key) is not None
    }
    if args.check_samples:
        given["check_samples"] = args.check_samples == "true"
    print(corpus.prepare(args.corpus, args.out, replace(corpus.limits, **given, nj=args.nj)))


if __name__ == "__main__":
    main()
