"""``speechclip index``: make pictures and recordings searchable."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.errors import UserError


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Build an index of pictures, recordings or both. Only an index or an empty folder is ever overwritten.

    Long recordings are cut into overlapping windows whose ends are in pauses. A run that was killed is continued by the
    same command, and the old index stays until the new one is complete. Formats: every one that Pillow decodes; wav,
    flac, mp3, ogg, opus, aiff, au, caf, w64, sph.
    """
    parser = ArgumentParser(prog="speechclip index", description=main.__doc__)
    parser.add_argument("--model", default="", help="checkpoint folder, published .ckpt, name, or id on the hub")
    parser.add_argument("--images", default="", metavar="DIR", help="folder of images, or data directory with img.scp")
    parser.add_argument(
        "--recordings", default="", metavar="DIR", help="folder of recordings, or data directory with wav.scp"
    )
    parser.add_argument(
        "--embeddings", default="", metavar="NPZ",
        help="precomputed image embeddings (ids, embeddings); --images then adds thumbnails",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--update", action="store_true",
        help="embed only new and changed files and drop deleted ones; folders and model are those of the index",
    )  # fmt: skip
    parser.add_argument("--window", type=float, default=6.0, help="length of a recording's window in seconds")
    parser.add_argument("--overlap", type=float, default=2.0, help="seconds that two windows share")
    parser.add_argument(
        "--branch", choices=("parallel", "cascaded"), default=None, help="branch of a hybrid model, for recordings"
    )
    parser.add_argument(
        "--kind", choices=("auto", "exact", "ivf"), default="auto",
        help="exact: search all items; ivf: search a part of them (faiss, extra search); auto: ivf above 50,000",
    )  # fmt: skip
    parser.add_argument("--lists", type=int, default=0, help="ivf: number of lists; 0 for 2 sqrt(number of items)")
    parser.add_argument("--probes", type=int, default=0, help="ivf: lists per query; 0 for 2.25 sqrt(lists)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the k-means that finds the lists")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the model")
    args = parser.parse_args(argv)
    if args.embeddings and (args.update or args.recordings):
        parser.error("--embeddings cannot be combined with --update or --recordings")
    if not args.update and not (args.images or args.recordings or args.embeddings):
        parser.error("--images, --recordings or --embeddings is needed")
    if not args.update and not args.model:
        parser.error("--model is needed")
    if min(args.lists, args.probes) < 0:
        parser.error("--lists and --probes must not be negative")

    from pathlib import Path

    from speechclip.search.build import (
        check_target,
        describe,
        index_embeddings,
        index_files,
        remembered,
    )
    from speechclip.search.query import load_for_search
    from speechclip.search.sources import find_images, find_sources
    from speechclip.search.windows import WindowSettings
    from speechclip.search.write import Structure

    out, windows = check_target(args.out), WindowSettings(args.window, args.overlap)
    structure = Structure(args.kind, args.lists, args.probes, args.seed)
    if args.embeddings:
        images = find_images(args.images, leave_out=out) if args.images else None
        model = load_for_search(args.model, args.device)
        info = index_embeddings(model, args.model, args.embeddings, out, images, structure)
        print(f"{out}: {info.count} images of {info.dim} dimensions ({info.kind})")
        return
    if args.update:
        before = remembered(Path(args.out))
        args.model, windows = args.model or before.model, before.windows
        args.branch = args.branch or before.branch
        args.images, args.recordings = args.images or before.images, args.recordings or before.recordings
    sources = find_sources(args.images, args.recordings, leave_out=out)
    model = load_for_search(args.model, args.device)
    if sources.images and model.network.clip is None:
        raise UserError(f"{args.model}: has no CLIP. Give precomputed image embeddings with --embeddings.")
    change = index_files(
        model, args.model, sources, out, structure, windows=windows, branch=args.branch, update=args.update
    )
    print(f"{out}: {describe(change, args.update)}")


if __name__ == "__main__":
    main()
