"""Stage 1: prepare data/{train,dev,test} and data/skipped.tsv from a corpus as it is published."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.devices import cpu_count


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Print the size of each split, and the number of skipped utterances by reason."""
    parser = ArgumentParser(prog="speechclip.bin.prepare_corpus", description=__doc__)
    parser.add_argument("--name", required=True, help="the corpus: a module of speechclip/data/corpora")
    parser.add_argument("--corpus", required=True, metavar="DIR", help="folder with photographs, captions, recordings")
    parser.add_argument("--out", default="data", metavar="DIR", help="folder of the data directories")
    parser.add_argument("--max_bad", type=float, help="fraction of the utterances that may be skipped")
    parser.add_argument("--min_seconds", type=float, help="shorter utterances are skipped")
    parser.add_argument("--max_seconds", type=float, help="longer utterances are skipped")
    parser.add_argument("--check_samples", choices=("true", "false"), help="decode all audio to check it")
    parser.add_argument("--nj", type=int, default=min(4, cpu_count()), help="number of processes")
    args = parser.parse_args(argv)

    from dataclasses import replace

    import speechclip.data.corpora

    helpers = {"preparation", "sources", "download"}
    known = [item.name for item in pkgutil.iter_modules(speechclip.data.corpora.__path__) if item.name not in helpers]
    if args.name not in known:
        parser.error(f"--name: unknown corpus '{args.name}' (known: {' '.join(known)})")
    module = importlib.import_module(f"speechclip.data.corpora.{args.name}")
    given = {
        key: getattr(args, key) for key in ("max_bad", "min_seconds", "max_seconds") if getattr(args, key) is not None
    }
    if args.check_samples:
        given["check_samples"] = args.check_samples == "true"
    prepare = getattr(module, f"prepare_{args.name}")
    print(prepare(args.corpus, args.out, replace(module.LIMITS, **given, nj=args.nj)))


if __name__ == "__main__":
    main()
