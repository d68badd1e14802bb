"""Convert a published SpeechCLIP checkpoint to this project's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser
from speechclip.common.errors import UserError


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Read a Lightning .ckpt, without executing code of the file, and write a checkpoint folder with its HuBERT."""
    parser = ArgumentParser(prog="speechclip convert", description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="published .ckpt, or a name of speechclip models"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="checkpoint folder to write")
    parser.add_argument(
        "--clip",
        default=None,
        metavar="PATH",
        help="CLIP of the checkpoint: folder, file or NAME:PRETRAINED. Default: OpenAI's of the same width; "
        "empty for none (parallel head)",
    )
    args = parser.parse_args(argv)

    import dataclasses

    from speechclip.checkpoint.folder import PROVENANCE, save_checkpoint
    from speechclip.checkpoint.pretrained import (
        SPEECH_ENCODER,
        converted_config,
        load_fast_vgs,
        load_published,
        published_file,
        save_speech_encoder,
    )
    from speechclip.common.files import check_replaceable, read_json
    from speechclip.common.provenance import provenance
    from speechclip.config import Config, DataConfig
    from speechclip.convert.fast_vgs import FastVgsCheckpoint

    file = published_file(args.checkpoint)
    if file is None:
        raise UserError(
            f"{args.checkpoint}: neither a file nor a published model. `speechclip models` lists the models."
        )
    check_replaceable(
        Path(args.out),
        lambda folder: (folder / PROVENANCE).is_file() and "converted_from" in read_json(folder / PROVENANCE),
    )
    model, published = load_published(file, clip=args.clip)
    assert model.speech_encoder is not None
    encoder = model.speech_encoder
    if isinstance(published, FastVgsCheckpoint):
        whole, normalize = load_fast_vgs(published)[1], True
    else:
        whole, normalize = encoder.model, published.encoder_normalize
    config = Config(model=converted_config(model.config), data=DataConfig(feats="online"))
    origin = {
        **provenance(command=None, seed=None, data=[]),
        **model.count_parameters(),
        "converted_from": file.name,
        "published": published.facts,
    }
    encoder.description["path"] = SPEECH_ENCODER
    save_checkpoint(
        Path(args.out),
        model,
        model.trained_state(),
        config,
        origin,
        extra=lambda folder: save_speech_encoder(whole, normalize, folder / SPEECH_ENCODER),
    )
    if isinstance(published, FastVgsCheckpoint):
        print(f"{args.checkpoint}: {published.parameters:,} parameters. {len(published.state) - 2} tensors are used,")
        print(
            f"  {len(published.convolutions)} of the frozen convolutions, {len(published.dropped)} no output depends on"
        )
        print(f"{args.out}: {dataclasses.asdict(model.dimensions)}, {origin['trained']:,} trained parameters")
        return
    used, total = len(published.state), sum(map(len, (published.state, published.hubert, published.clip)))
    print(f"{args.checkpoint}: {config.model.head.name} head. All tensors are accounted for: {used} trained,")
    print(f"  {total - used} frozen, {len(published.table)} subword rows, {len(published.dropped)} dropped copies")
    print(f"{args.out}: {dataclasses.asdict(model.dimensions)}, {origin['trained']:,} trained parameters")


if __name__ == "__main__":
    main()
