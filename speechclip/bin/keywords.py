"""``speechclip keywords``: list the keywords of recordings with their times."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """List the keywords that a model finds in recordings: start, end, and the nearest subwords with their cosines.

    JSON is one line per recording. A recording that cannot be read is an error line, and the others are still listed.
    """
    parser = ArgumentParser(prog="speechclip keywords", description=main.__doc__)
    parser.add_argument("recordings", nargs="+", metavar="PATH", help="recordings, or folders of them")
    parser.add_argument("--model", required=True, help="checkpoint folder, published .ckpt, name, or id on the hub")
    parser.add_argument("--format", choices=("text", "json", "csv", "textgrid"), default="text", help="format")
    parser.add_argument(
        "--out", default="", metavar="PATH",
        help="file to write; for textgrid a folder with one file per recording; default: standard output",
    )  # fmt: skip
    parser.add_argument("--neighbours", type=int, default=3, help="number of subwords per keyword")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the model")
    args = parser.parse_args(argv)
    if args.neighbours < 1:
        parser.error("--neighbours must be at least 1")
    if args.format == "textgrid" and not args.out:
        parser.error("--format textgrid needs --out, a folder")

    import sys
    from pathlib import Path

    from speechclip.common.constants import SAMPLE_RATE
    from speechclip.common.errors import UserError
    from speechclip.common.files import check_folder, replace_file
    from speechclip.data.audio import check_not_silent, load_audio
    from speechclip.search import export
    from speechclip.search.embed_table import find_inputs
    from speechclip.search.items import RECORDING
    from speechclip.search.query import load_for_search

    out = Path(args.out) if args.out else None
    if out is not None:
        check_folder(out if args.format == "textgrid" else out.parent)
    files = find_inputs(args.recordings, RECORDING)
    model = load_for_search(args.model, args.device)
    if not model.has_keywords:
        raise UserError(f"{args.model}: its head finds no keywords. Give a model with a cascaded or hybrid head.")
    found, failed = [], False
    for name, file in files.items():
        try:
            wave = load_audio(file)
            check_not_silent(file, wave)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        words = model.keywords(wave, top_k=args.neighbours)[0]
        found.append((name, words))
        if args.format == "textgrid" and out is not None:
            content = export.keywords_as_textgrid(words, len(wave) / SAMPLE_RATE)
            replace_file(out / f"{Path(name).as_posix().lstrip('/')}.TextGrid", content.encode())
    if args.format != "textgrid":
        if args.format == "csv":
            text = export.keywords_as_csv(found)
        else:
            one = export.keywords_as_json if args.format == "json" else export.keywords_as_text
            text = "".join(one(name, words) for name, words in found)
        if out is None:
            print(text, end="")
        else:
            replace_file(out, text.encode())
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
