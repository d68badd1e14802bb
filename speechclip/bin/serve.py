"""``speechclip serve``: a local page to search images by voice."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Serve a page on which one speaks, or uploads a recording, and sees the images and the keywords heard.

    Only thumbnails of the index leave this machine's disk, no recording is kept, and nothing is loaded from elsewhere.
    """
    parser = ArgumentParser(prog="speechclip serve", description=main.__doc__)
    parser.add_argument("--index", required=True, metavar="INDEX", help="folder that speechclip index wrote")
    parser.add_argument("--model", default="", help="where the index's model is now, if it was moved")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets the network in")
    parser.add_argument("--port", type=int, default=8017, help="0 for any that is free")
    parser.add_argument("--top_k", type=int, default=12, help="number of images shown")
    parser.add_argument("--neighbours", type=int, default=3, help="subwords named for each keyword")
    parser.add_argument("--branch", choices=("parallel", "cascaded"), default=None, help="of a hybrid head")
    parser.add_argument("--max_seconds", type=float, default=30.0, help="longest query taken")
    parser.add_argument("--max_megabytes", type=float, default=20.0, help="largest upload taken")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where speech is encoded")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f"--port: {args.port} is not 0 to 65535")
    if min(args.top_k, args.neighbours) < 1 or not min(args.max_seconds, args.max_megabytes) > 0:
        parser.error("--top_k and --neighbours are at least 1, --max_seconds and --max_megabytes above 0")

    from speechclip.search.query import open_with_model
    from speechclip.search.serve import Limits, listen_on, make_app, run

    with listen_on(args.host, args.port) as socket:
        index, model = open_with_model(args.index, args.model, args.device)
        limits = Limits(args.max_seconds, int(args.max_megabytes * 1e6), args.top_k, args.neighbours)
        app = make_app(model, index, limits, host=args.host, branch=args.branch)
        run(app, socket)


if __name__ == "__main__":
    main()
