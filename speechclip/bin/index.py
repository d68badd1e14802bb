"""``speechclip index``: make images searchable by voice."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.errors import UserError


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Build an index of images for search by voice. Only an index or an empty folder is ever overwritten."""
    parser = ArgumentParser(prog="speechclip index", description=main.__doc__)
    parser.add_argument("--model", required=True, help="checkpoint folder, published .ckpt, name, or id on the hub")
    parser.add_argument("--images", default="", metavar="DIR", help="folder of images, or data directory with img.scp")
    parser.add_argument(
        "--embeddings", default="", metavar="NPZ",
        help="precomputed image embeddings (ids, embeddings); --images then adds thumbnails",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--kind", choices=("auto", "exact", "ivf"), default="auto",
        help="exact: search all images; ivf: search a part of them (faiss, extra search); auto: ivf above 50,000",
    )  # fmt: skip
    parser.add_argument("--lists", type=int, default=0, help="ivf: number of lists; 0 for 2 sqrt(number of images)")
    parser.add_argument("--probes", type=int, default=0, help="ivf: lists per query; 0 for 2.25 sqrt(lists)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the k-means that finds the lists")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that embeds images")
    args = parser.parse_args(argv)
    if not args.images and not args.embeddings:
        parser.error("--images or --embeddings is needed")
    if min(args.lists, args.probes) < 0:
        parser.error("--lists and --probes must not be negative")

    from pathlib import Path

    from speechclip.search.build import (
        Structure,
        check_target,
        find_images,
        find_other_files,
        index_embeddings,
        index_images,
    )
    from speechclip.search.query import load_for_search

    check_target(args.out)
    structure = Structure(args.kind, args.lists, args.probes, args.seed)
    images = find_images(args.images, leave_out=Path(args.out)) if args.images else None
    model = load_for_search(args.model, args.device)
    if args.embeddings:
        info = index_embeddings(model, args.model, args.embeddings, args.out, images, structure)
    elif model.network.clip is None:
        raise UserError(f"{args.model}: has no CLIP. Give precomputed image embeddings with --embeddings.")
    else:
        others = find_other_files(args.images, leave_out=Path(args.out))
        info = index_images(model, args.model, images or {}, args.out, structure, others)
    rest = f", {info.not_indexed} files not indexed" if info.not_indexed else ""
    print(f"{args.out}: {info.count} images of {info.dim} dimensions ({info.kind}){rest}")


if __name__ == "__main__":
    main()
