"""Stage 3: train a head."""

from __future__ import annotations

import os
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.config import build_parser, parse


@stage_script
def main() -> None:
    """Train the configured head on data/train, choosing the best weights on data/dev.

    Asked to stop by SIGTERM, it saves and ends with status 75; the same command goes on from there.
    """
    parser = build_parser("speechclip.bin.train", __doc__ or "")
    parser.add_argument("--data_root", type=str, required=True, help="folder of the data directories train/ and dev/")
    parser.add_argument("--dump_root", type=str, required=True, help="folder with what stage 2 stored for each of them")
    parser.add_argument(
        "--vocabulary", type=str, default="data/clip_vocabulary.tsv", help="reduced vocabulary, of heads with keywords"
    )
    parser.add_argument("--out", type=str, required=True, help="experiment folder; a run that was cut is resumed")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, batches, crops and dropout")
    config, options = parse(parser)

    from contextlib import nullcontext

    import torch

    from speechclip.common.constants import EXIT_RESUMABLE
    from speechclip.common.files import only_one
    from speechclip.common.provenance import provenance
    from speechclip.train.setup import frozen_parts, launch, training_data, training_model
    from speechclip.train.trainer import Trainer

    fabric = launch(config.train.precision)
    with only_one(Path(options.out)) if fabric.global_rank == 0 else nullcontext():
        torch.manual_seed(options.seed)
        model = training_model(config, Path(options.dump_root) / "train", options.vocabulary)
        data = training_data(config, Path(options.data_root), Path(options.dump_root))
        origin = provenance(
            command=None, seed=options.seed, data=[Path(options.data_root) / "train", Path(options.data_root) / "dev"]
        )
        origin["encoders"] = frozen_parts(data, Path(options.dump_root) / "train")
        trainer = Trainer(config, model, data, Path(options.out), fabric=fabric, seed=options.seed, origin=origin)
        trainer.run()
    if trainer.stopped:
        if mark := os.environ.get("SPEECHCLIP_STOPPED"):  # torchrun has a status of its own
            Path(mark).touch()
        raise SystemExit(EXIT_RESUMABLE)


if __name__ == "__main__":
    main()
