"""``speechclip search``: find pictures and recordings with a recording, text, a picture or an indexed item."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Find the items of an index that a query describes: rank, cosine and id of each, and the keywords of speech.

    Pictures and recordings have ranks of their own. An id of a recording ends in its time: talk.wav#t=12.5,18.02.
    """
    args = _parse(argv, main.__doc__)

    import json
    import sys
    from pathlib import Path

    from speechclip.common.errors import UserError
    from speechclip.search.export import answer_record, check_export, export_answers
    from speechclip.search.index import ImageIndex
    from speechclip.search.query import (
        DEMO_MODEL,
        Answer,
        ask,
        ask_image,
        ask_like,
        ask_text,
        demo_folder,
        format_answer,
        open_with_model,
    )

    if args.export:
        check_export(Path(args.export))
    index_path, recordings = args.index, args.queries
    typed = bool(args.text or args.image or args.like)
    if args.demo:
        folder = demo_folder()
        index_path, args.model = str(folder / "index"), args.model or DEMO_MODEL
        recordings = recordings or ([] if typed else sorted(map(str, folder.glob("queries/*.flac"))))
    if recordings or args.text or args.image:
        index, model = open_with_model(index_path, args.model, args.device, args.branch)
    else:
        index, model = ImageIndex.open(index_path), None
    kinds = (args.only,) if args.only else ()

    def respond(how: str, query: str) -> Answer:
        if how == "like":
            return ask_like(index, query, top_k=args.top_k, exact=args.exact, kinds=kinds)
        assert model is not None
        if how == "speech":
            return ask(
                model, index, query, top_k=args.top_k, branch=args.branch, neighbours=args.neighbours,
                max_seconds=args.max_seconds, exact=args.exact, kinds=kinds,
            )  # fmt: skip
        find = ask_text if how == "text" else ask_image
        return find(model, index, query, top_k=args.top_k, exact=args.exact, kinds=kinds)

    given = {"speech": recordings, "text": args.text, "image": args.image, "like": args.like}
    answers, failed = [], False
    for how, query in ((how, query) for how, queries in given.items() for query in queries):
        try:
            answer = respond(how, query)
        except UserError as error:  # the other queries are still answered
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        answers.append((query, answer))
        print(json.dumps(answer_record(query, answer)) if args.json else format_answer(query, answer), flush=True)
    if args.export:
        export_answers(Path(args.export), answers)
    if failed:
        raise SystemExit(1)


def _parse(argv: Sequence[str] | None, description: str | None) -> Namespace:
    """Parse and check the options."""
    parser = ArgumentParser(prog="speechclip search", description=description)
    parser.add_argument("queries", nargs="*", metavar="QUERY.wav", help="recordings (wav, flac, mp3, ogg, ...)")
    parser.add_argument("--index", default="", metavar="INDEX", help="folder that speechclip index wrote")
    parser.add_argument("--demo", action="store_true", help="search the demo images; without a query, its recordings")
    parser.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="typed queries")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="pictures as queries")
    parser.add_argument("--like", nargs="+", default=[], metavar="ID", help="items of the index as queries")
    parser.add_argument("--only", choices=("image", "recording"), default=None, help="kind of the hits; default: all")
    parser.add_argument("--model", default="", help="place of the index's model, if it was moved")
    parser.add_argument("--top_k", type=int, default=10, help="number of hits of each kind")
    parser.add_argument("--neighbours", type=int, default=3, help="number of subwords per keyword")
    parser.add_argument("--branch", choices=("parallel", "cascaded"), default=None, help="branch of a hybrid model")
    parser.add_argument("--max_seconds", type=float, default=60.0, help="longest recording")
    parser.add_argument("--exact", action="store_true", help="compare with every item, also in an ivf index")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per query")
    parser.add_argument(
        "--export", default="", metavar="FILE", help="also write the hits with their paths to a .json or .csv file"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the model")
    args = parser.parse_args(argv)
    if bool(args.index) == args.demo:
        parser.error("either --index or --demo is needed")
    if not args.queries and not (args.text or args.image or args.like) and not args.demo:
        parser.error("QUERY.wav, --text, --image or --like is needed")
    if min(args.top_k, args.neighbours) < 1:
        parser.error("--top_k and --neighbours must be at least 1")
    if not args.max_seconds > 0:  # also refuses nan
        parser.error("--max_seconds must be above 0")
    return args


if __name__ == "__main__":
    main()
