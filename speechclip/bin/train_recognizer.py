"""Stage 3: train a CTC recogniser on the captions, the in-domain opponent of the heads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from speechclip.bin import stage_script
from speechclip.config import build_parser, parse


@stage_script
def main() -> None:
    """Train a recogniser on the captions of data/train over the hidden states that the heads read."""
    from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

    parser = build_parser("speechclip.bin.train_recognizer", __doc__ or "")
    parser.add_argument("--data_root", type=str, required=True, help="folder with the data directories train/ and dev/")
    parser.add_argument("--dump_root", type=str, required=True, help="folder with the features of each")
    parser.add_argument("--out", type=str, required=True, help="folder of the recogniser")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="seed of initialisation, batches and dropout")
    parser.add_argument("--units", type=Literal["words", "characters"], default="words", help="output units")
    parser.add_argument("--stride", type=PositiveInt, default=3, help="frames of 20 ms per output")
    parser.add_argument("--width", type=PositiveInt, default=192, help="channels of the convolutions")
    parser.add_argument("--layers", type=NonNegativeInt, default=2, help="residual blocks")
    parser.add_argument("--dropout", type=float, default=0.1, help="probability of dropout")
    parser.add_argument("--batch_size", type=PositiveInt, default=64, help="utterances per step")
    parser.add_argument("--steps", type=PositiveInt, default=300, help="number of steps")
    parser.add_argument("--lr", type=PositiveFloat, default=2e-3, help="peak learning rate")
    config, options = parse(parser)

    import dataclasses

    from speechclip.checkpoint.recognizers import PROVENANCE, save_ctc
    from speechclip.common.files import check_folder
    from speechclip.common.provenance import provenance
    from speechclip.data.dataset import StoreSource
    from speechclip.data.kaldi import DataDir
    from speechclip.model.recognizers.ctc import CtcSettings
    from speechclip.train.recognizer import CtcTraining, train_ctc

    out = Path(options.out)
    check_folder(out)
    directories = [DataDir.load(Path(options.data_root) / name) for name in ("train", "dev")]
    train, dev = directories
    sources = [
        StoreSource(
            Path(options.dump_root) / name, [u.id for u in directory.utterances], config.model.speech_encoder.layers
        )
        for name, directory in zip(("train", "dev"), directories)
    ]
    origin = provenance(command=None, seed=options.seed, data=[train.path, dev.path])
    settings = CtcSettings(
        units=options.units, stride=options.stride, width=options.width, layers=options.layers, dropout=options.dropout
    )
    training = CtcTraining(batch_size=options.batch_size, steps=options.steps, lr=options.lr)
    shape = (sources[0].num_states, sources[0].dim)
    trained = train_ctc(train, sources[0], dev, sources[1], shape, settings, training, options.seed)
    origin |= {**trained.facts, "training": dataclasses.asdict(training)}
    origin["encoders"] = {"speech_encoder": sources[0].store.encoder}
    weights = trained.network.state_dict()
    save_ctc(out, weights, trained.units, settings, config.model.speech_encoder, shape, origin)
    print(f"{out / PROVENANCE}: step {trained.facts['step']}, WER on dev {trained.facts['dev_wer']:.1f}")


if __name__ == "__main__":
    main()
