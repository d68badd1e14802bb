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
    parser.add_argument("--coarse", type=str, default="", help="checkpoint of the trained head, for the head reranker")
    config, options = parse(parser, argv)

    from contextlib import nullcontext

    import torch

    from speechclip.common.constants import EXIT_RESUMABLE
    from speechclip.common.files import only_one
    from speechclip.common.provenance import provenance
    from speechclip.train.setup import frozen_parts, launch, make_trainer, prepare_training

    data_root, dump_root, out = Path(options.data_root), Path(options.dump_root), Path(options.out)
    fabric = launch(config.train.precision)
    with only_one(out) if fabric.global_rank == 0 else nullcontext():
        torch.manual_seed(options.seed)
        config, model, data = prepare_training(config, data_root, dump_root, options.vocabulary, options.coarse)
        origin = provenance(command=None, seed=options.seed, data=[data_root / "train", data_root / "dev"])
        origin["encoders"] = frozen_parts(data, dump_root / "train")
        trainer = make_trainer(
            config, model, data, out, fabric=fabric, seed=options.seed, origin=origin, force=options.force,
            dump_root=dump_root, coarse=options.coarse,
        )  # fmt: skip
        trainer.run()
    if trainer.stopped:
        if mark := os.environ.get("SPEECHCLIP_STOPPED"):  # torchrun replaces the exit status by its own
            Path(mark).touch()
        raise SystemExit(EXIT_RESUMABLE)


if __name__ == "__main__":
    main()
