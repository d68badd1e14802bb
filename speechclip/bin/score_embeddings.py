"""Score retrieval between two files of embeddings with ids, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Read two .npz files (ids, embeddings) and print the scores. An item is relevant if the groups are equal."""
    parser = ArgumentParser(prog="speechclip score", description=__doc__)
    parser.add_argument(
        "--queries", required=True, metavar="NPZ", help="embeddings of the queries, with the arrays ids and embeddings"
    )
    parser.add_argument("--gallery", required=True, metavar="NPZ", help="embeddings of the gallery, in the same format")
    groups = "table 'id group' of the {}, such as utt2img (default: the id is the group)"
    parser.add_argument("--query_groups", default="", metavar="FILE", help=groups.format("queries"))
    parser.add_argument("--gallery_groups", default="", metavar="FILE", help=groups.format("gallery"))
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals, 0 for none")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamples")
    parser.add_argument("--out", default="", metavar="FILE", help="write the scores as JSON")
    args = parser.parse_args(argv)
    if args.bootstrap < 0:
        parser.error(f"--bootstrap: {args.bootstrap} is negative")

    from speechclip.common.files import write_json
    from speechclip.eval.embedding_files import score_embedding_files

    report = score_embedding_files(
        (Path(args.queries), args.query_groups), (Path(args.gallery), args.gallery_groups), args.bootstrap, args.seed
    )  # fmt: skip
    for direction, row in report.items():
        cells = "  ".join(f"{key} {row[key]:6.2f}" for key in ("R@1", "R@5", "R@10", "MRR"))
        print(f"{direction:26} {cells}  ({row['n_queries']:,} in {row['n_gallery']:,})")
    if args.out:
        write_json(Path(args.out), report)


if __name__ == "__main__":
    main()
