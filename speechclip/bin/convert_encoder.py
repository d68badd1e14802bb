"""Convert an encoder from its original file: fairseq's HuBERT, OpenAI's or transformers' CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.constants import CLIP_CONFIG, PREPROCESSOR_CONFIG
from speechclip.common.errors import UserError


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Write HuBERT as a transformers folder or CLIP as an open_clip folder. No code of the file is executed."""
    parser = ArgumentParser(prog="speechclip.bin.convert_encoder", description=__doc__)
    parser.add_argument("--kind", required=True, choices=("hubert", "clip"), help="model in the file")
    parser.add_argument(
        "--file", required=True, metavar="PATH", help="fairseq .pt, OpenAI .pt or a transformers folder"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    args = parser.parse_args(argv)

    from speechclip.checkpoint.pretrained import save_speech_encoder
    from speechclip.common.files import SUMS, check_replaceable, replace_folder
    from speechclip.convert.clip import read_clip, save_clip_folder
    from speechclip.convert.hubert import read_hubert
    from speechclip.model.encoders.base import weights_fingerprint

    if not Path(args.file).exists():
        raise UserError(f"{args.file}: is missing. Check the path.")
    if args.kind == "hubert" and Path(args.file).is_dir():
        raise UserError(f"{args.file}: is a directory. Give the .pt file of fairseq.")
    marker = PREPROCESSOR_CONFIG if args.kind == "hubert" else CLIP_CONFIG
    check_replaceable(Path(args.out), lambda folder: (folder / SUMS).is_file() and (folder / marker).is_file())
    if args.kind == "hubert":
        model, normalize = read_hubert(args.file)
        replace_folder(Path(args.out), lambda folder: save_speech_encoder(model, normalize, folder))
    else:
        model, settings = read_clip(args.file)
        replace_folder(Path(args.out), lambda folder: save_clip_folder(model, settings, folder))
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.out}: {count:,} parameters, fingerprint {weights_fingerprint(model)}")


if __name__ == "__main__":
    main()
