"""Stage 7: pack a scored model for other machines, and push it to the hub if --push is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Write weights, settings, vocabulary, scores and model card into one folder for from_pretrained."""
    parser = ArgumentParser(prog="speechclip.bin.pack", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="checkpoint folder")
    parser.add_argument("--scores", required=True, metavar="DIR", help="folder with retrieval.json (stage 4)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--corpus", default=Path.cwd().name, help="training corpus, for the model card")
    parser.add_argument(
        "--push", default="", metavar="OWNER/NAME", help="also push the pack to the hub as a private model"
    )
    args = parser.parse_args(argv)

    from speechclip.checkpoint.hub import is_pack, pack, push
    from speechclip.common.files import check_replaceable

    check_replaceable(Path(args.out), is_pack)
    pack(args.checkpoint, Path(args.scores), Path(args.out), args.corpus)
    size = sum(path.stat().st_size for path in Path(args.out).rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")
    if args.push:
        print(push(Path(args.out), args.push))


if __name__ == "__main__":
    main()
