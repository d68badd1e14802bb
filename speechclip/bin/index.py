"""``speechclip index``: images become an index that spoken queries search."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.errors import UserError


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Index images for search by voice, with ids and thumbnails. A folder that is no index is never overwritten."""
    parser = ArgumentParser(prog="speechclip index", description=main.__doc__)
    parser.add_argument("--model", required=True, help="checkpoint folder, published .ckpt, or id on the hub")
    parser.add_argument("--images", default="", metavar="DIR", help="folder of images, or data directory with img.scp")
    parser.add_argument(
        "--embeddings", default="", metavar="NPZ",
        help="precomputed embeddings (ids, embeddings) in the image tower's place; --images then adds thumbnails",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--kind", choices=("auto", "exact", "ivf"), default="auto",
        help="search all images, or a part of them (faiss, extra search); auto: ivf above 50,000",
    )  # fmt: skip
    parser.add_argument("--lists", type=int, default=0, help="of ivf: groups of images, 0 for 2 sqrt(number)")
    parser.add_argument("--probes", type=int, default=0, help="of ivf: groups looked into, 0 for 2.25 sqrt(groups)")
    parser.add_argument("--seed", type=int, default=0, help="of the grouping")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where images are embedded")
    args = parser.parse_args(argv)
    if not args.images and not args.embeddings:
        parser.error("--images or --embeddings is needed")
    if min(args.lists, args.probes) < 0:
        parser.error("--lists and --probes are not negative")

    from pathlib import Path

    from speechclip.search.build import Structure, check_target, find_images, index_embeddings, index_images
    from speechclip.search.query import load_for_search

    check_target(args.out)
    structure = Structure(args.kind, args.lists, args.probes, args.seed)
    images = find_images(args.images, leave_out=Path(args.out)) if args.images else None
    model = load_for_search(args.model, args.device)
    if args.embeddings:
        info = index_embeddings(model, args.model, args.embeddings, args.out, images, structure)
    elif images and model.network.clip is None:
        raise UserError(f"{args.model}: trained on precomputed embeddings, without CLIP: give --embeddings too")
    else:
        info = index_images(model, args.model, images or {}, args.out, structure)
    left_out = f", {info.skipped} left out" if info.skipped else ""
    print(f"{args.out}: {info.count} images of {info.dim} dimensions ({info.kind}){left_out}")


if __name__ == "__main__":
    main()
