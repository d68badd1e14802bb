"""``speechclip search``: a spoken query to an index of images."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Find the images a recording speaks of: rank, cosine and id of each, and the keywords heard with their times."""
    parser = ArgumentParser(prog="speechclip search", description=main.__doc__)
    parser.add_argument("queries", nargs="+", metavar="QUERY.wav", help="recordings (wav, flac, mp3, ogg, ...)")
    parser.add_argument("--index", required=True, metavar="INDEX", help="folder that speechclip index wrote")
    parser.add_argument("--model", default="", help="where the index's model is now, if it was moved")
    parser.add_argument("--top_k", type=int, default=10, help="number of images")
    parser.add_argument("--neighbours", type=int, default=3, help="subwords named for each keyword")
    parser.add_argument("--branch", choices=("parallel", "cascaded"), default=None, help="of a hybrid head")
    parser.add_argument("--max_seconds", type=float, default=60.0, help="longest query taken")
    parser.add_argument("--exact", action="store_true", help="compare with every image, whatever the kind of index")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each query")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where speech is encoded")
    args = parser.parse_args(argv)
    if min(args.top_k, args.neighbours) < 1:
        parser.error("--top_k and --neighbours are at least 1")

    import json

    from speechclip.search.query import ask, format_answer, open_with_model

    index, model = open_with_model(args.index, args.model, args.device)
    for query in args.queries:
        answer = ask(
            model, index, query, top_k=args.top_k, branch=args.branch, neighbours=args.neighbours,
            max_seconds=args.max_seconds, exact=args.exact,
        )  # fmt: skip
        if args.json:
            print(json.dumps({"query": query, **answer.as_dict()}), flush=True)
        else:
            print(format_answer(query, answer), flush=True)


if __name__ == "__main__":
    main()
