"""``speechclip embed``: write the embeddings of files or texts."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Write embeddings as .npz (ids, embeddings), which speechclip index, score and the recipes read.

    The ids are the files as they are given, the paths below a folder, or the ids of a data directory or of a table. A
    file that cannot be read is an error line, the others are still written, and the exit status is then 1.
    """
    parser = ArgumentParser(prog="speechclip embed", description=main.__doc__)
    parser.add_argument("--model", required=True, help="checkpoint folder, published .ckpt, name, or id on the hub")
    parser.add_argument("--recordings", nargs="+", default=[], metavar="PATH", help="recordings, or folders of them")
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="pictures, or folders of them")
    parser.add_argument("--texts", default="", metavar="FILE", help="table 'id text', such as text of a data directory")
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="file to write")
    parser.add_argument("--branch", choices=("parallel", "cascaded"), default=None, help="branch of a hybrid model")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the model")
    args = parser.parse_args(argv)
    if sum(map(bool, (args.recordings, args.images, args.texts))) != 1:
        parser.error("one of --recordings, --images and --texts is needed: ids of one file are of one kind")

    import sys
    from pathlib import Path

    from speechclip.common.errors import UserError
    from speechclip.data.embeddings import save_embeddings
    from speechclip.data.kaldi import read_table
    from speechclip.search.embed_table import embed_table, find_inputs
    from speechclip.search.items import IMAGE, RECORDING
    from speechclip.search.query import load_for_search

    out = Path(args.out)
    if out.suffix != ".npz":
        raise UserError(f"{out}: does not end in .npz. Give such a name.")
    kind = IMAGE if args.images else RECORDING if args.recordings else "text"
    items = dict(read_table(args.texts)) if args.texts else find_inputs(args.images or args.recordings, kind)
    model = load_for_search(args.model, args.device)
    ids, vectors, problems = embed_table(model, kind, items, args.branch)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    if not ids:
        raise UserError(f"{out}: not written. None of the {len(items)} inputs can be embedded.")
    clip = model.network.clip
    source = {"kind": kind, "model": args.model} | ({"weights": clip.description["weights"]} if clip else {})
    save_embeddings(out, ids, vectors, source)
    print(f"{out}: {len(ids)} embeddings of {vectors.shape[1]} dimensions")
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
