"""Stage 3: train a head."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.config import build_parser, parse


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Train the configured head on data/train. The scores on data/dev choose the best weights.

    SIGTERM saves the current step and exits with status 75. The same command then resumes.
    """
    from jsonargparse.typing import NonNegativeInt

    parser = build_parser("speechclip train", __doc__ or "")
    parser.add_argument("--data_root", type=str, required=True, help="folder with the data directories train/ and dev/")
    parser.add_argument("--dump_root", type=str, required=True, help="folder with the features and embeddings of each")
    parser.add_argument(
        "--vocabulary", type=str, default="data/clip_vocabulary.tsv", help="reduced vocabulary, for heads with keywords"
    )
    parser.add_argument("--out", type=str, required=True, help="experiment folder; a run that was stopped resumes")
    parser.add_argument(
        "--seed", type=NonNegativeInt, default=0, help="seed of initialisation, batches, crops and dropout"
    )
    parser.add_argument(
        "--force", type=bool, default=False, help="start over, and delete the earlier weights after the first save"
    )
    config, options = parse(parser, argv)

    from contextlib import nullcontext

    import torch

    from speechclip.common.constants import EXIT_RESUMABLE
    from speechclip.common.files import only_one
    from speechclip.common.provenance import provenance
    from speechclip.train.setup import frozen_parts, launch, training_data, training_model
    from speechclip.train.trainer import Trainer

    data_root, dump_root, out = Path(options.data_root), Path(options.dump_root), Path(options.out)
    fabric = launch(config.train.precision)
    with only_one(out) if fabric.global_rank == 0 else nullcontext():
        torch.manual_seed(options.seed)
        model = training_model(config, dump_root / "train", options.vocabulary)
        data = training_data(config, data_root, dump_root)
        origin = provenance(command=None, seed=options.seed, data=[data_root / "train", data_root / "dev"])
        origin["encoders"] = frozen_parts(data, dump_root / "train")
        trainer = Trainer(
            config, model, data, out, fabric=fabric, seed=options.seed, origin=origin, force=options.force
        )
        trainer.run()
    if trainer.stopped:
        if mark := os.environ.get("SPEECHCLIP_STOPPED"):  # torchrun replaces the exit status by its own
            Path(mark).touch()
        raise SystemExit(EXIT_RESUMABLE)


if __name__ == "__main__":
    main()
