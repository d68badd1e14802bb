"""``speechclip serve``: open a local web page to search images by voice."""

from __future__ import annotations

import re
from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Serve a web page that searches an index with the microphone, a file, typed text or an indexed item.

    Only thumbnails and recordings of the index are served, no query is kept, and nothing is loaded from other hosts.
    Behind a proxy, give the host name of the proxy with --allowed_host. If the proxy serves the page below a path and
    does not remove it, give the path with --path_prefix. An index that is replaced is opened again.
    """
    parser = ArgumentParser(prog="speechclip serve", description=main.__doc__)
    parser.add_argument("--index", default="", metavar="INDEX", help="folder that speechclip index wrote")
    parser.add_argument("--demo", action="store_true", help="search the demo images with the demo model")
    parser.add_argument("--model", default="", help="place of the index's model, if it was moved")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=8017, help="port to listen on; 0 for any free one")
    parser.add_argument("--allowed_host", nargs="+", default=[], metavar="NAME", help="host names of a proxy")
    parser.add_argument("--path_prefix", default="", metavar="/PATH", help="path of the page that the proxy passes on")
    parser.add_argument("--top_k", type=int, default=12, help="number of results")
    parser.add_argument("--neighbours", type=int, default=3, help="number of subwords per keyword")
    parser.add_argument("--branch", choices=("parallel", "cascaded"), default=None, help="branch of a hybrid model")
    parser.add_argument("--max_seconds", type=float, default=30.0, help="longest query")
    parser.add_argument("--max_megabytes", type=float, default=20.0, help="largest upload")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that encodes speech")
    args = parser.parse_args(argv)
    if bool(args.index) == args.demo:
        parser.error("either --index or --demo is needed")
    if not 0 <= args.port <= 65535:
        parser.error(f"--port: {args.port} is not 0 to 65535")
    prefix = args.path_prefix.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", prefix) or {".", ".."} & set(prefix.split("/")):
        parser.error(f"--path_prefix: {args.path_prefix} is not a path such as /search")
    for name in args.allowed_host:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:.]+\]", name):
            parser.error(f"--allowed_host: {name} is not a host name such as search.example.org, without port and path")
    if min(args.top_k, args.neighbours) < 1:
        parser.error("--top_k and --neighbours must be at least 1")
    if not 0 < args.max_seconds <= 3600 or not 0 < args.max_megabytes <= 1000:
        parser.error("--max_seconds must be above 0 and at most 3600, --max_megabytes above 0 and at most 1000")

    from speechclip.search.connections import listen_on, run  # first: it explains missing packages
    from speechclip.search.query import DEMO_MODEL, demo_folder, open_with_model
    from speechclip.search.serve import make_app
    from speechclip.search.service import Limits

    with listen_on(args.host, args.port) as socket:
        if args.demo:
            args.index, args.model = str(demo_folder() / "index"), args.model or DEMO_MODEL
        index, model = open_with_model(args.index, args.model, args.device, args.branch)
        limits = Limits(args.max_seconds, int(args.max_megabytes * 1e6), args.top_k, args.neighbours)
        app = make_app(
            model, index, limits, host=args.host, branch=args.branch, allowed_hosts=args.allowed_host,
            path_prefix=prefix,
        )  # fmt: skip
        run(app, socket, prefix)


if __name__ == "__main__":
    main()
