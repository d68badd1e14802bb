"""``speechclip search``: find images with a recorded query."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Find the images that a recording describes: rank, cosine and id of each, and the keywords with their times."""
    parser = ArgumentParser(prog="speechclip search", description=main.__doc__)
    parser.add_argument("queries", nargs="*", metavar="QUERY.wav", help="recordings (wav, flac, mp3, ogg, ...)")
    parser.add_argument("--index", default="", metavar="INDEX", help="folder that speechclip index wrote")
    parser.add_argument("--demo", action="store_true", help="search the demo images; without QUERY, its recordings")
    parser.add_argument("--model", default="", help="place of the index's model, if it was moved")
    parser.add_argument("--top_k", type=int, default=10, help="number of images")
    parser.add_argument("--neighbours", type=int, default=3, help="number of subwords per keyword")
    parser.add_argument("--branch", choices=("parallel", "cascaded"), default=None, help="branch of a hybrid model")
    parser.add_argument("--max_seconds", type=float, default=60.0, help="longest query")
    parser.add_argument("--exact", action="store_true", help="compare with every image, also in an ivf index")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per query")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that encodes speech")
    args = parser.parse_args(argv)
    if bool(args.index) == args.demo:
        parser.error("either --index or --demo is needed")
    if not args.queries and not args.demo:
        parser.error("QUERY.wav is needed")
    if min(args.top_k, args.neighbours) < 1:
        parser.error("--top_k and --neighbours must be at least 1")
    if not args.max_seconds > 0:  # also refuses nan
        parser.error("--max_seconds must be above 0")

    import json
    import sys

    from speechclip.common.errors import UserError
    from speechclip.search.query import DEMO_MODEL, ask, demo_folder, format_answer, open_with_model

    index_path, queries = args.index, args.queries
    if args.demo:
        folder = demo_folder()
        index_path, args.model = str(folder / "index"), args.model or DEMO_MODEL
        queries = queries or sorted(map(str, folder.glob("queries/*.flac")))
    index, model = open_with_model(index_path, args.model, args.device, args.branch)
    failed = False
    for query in queries:
        try:
            answer = ask(
                model, index, query, top_k=args.top_k, branch=args.branch, neighbours=args.neighbours,
                max_seconds=args.max_seconds, exact=args.exact,
            )  # fmt: skip
        except UserError as error:  # the other queries are still answered
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        if args.json:
            print(json.dumps({"query": query, **answer.as_dict()}), flush=True)
        else:
            print(format_answer(query, answer), flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
