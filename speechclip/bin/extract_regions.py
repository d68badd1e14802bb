"""Stage 2: store image regions for cross-modal heads."""

from __future__ import annotations

from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.errors import UserError
from speechclip.common.shutdown import GracefulShutdown
from speechclip.config import build_parser, parse


@stage_script
def main() -> None:
    """Store CLIP's patch tokens of all images of the data directories. A second call resumes.

    After SIGTERM it finishes the current batch, stores the finished images and exits with status 75.
    """
    stop = GracefulShutdown().__enter__()
    parser = build_parser("speechclip.bin.extract_regions", __doc__ or "")
    parser.add_argument(
        "--data_dirs", type=list[str], required=True, help="data directories, e.g. '[data/train,data/dev]'"
    )
    parser.add_argument(
        "--dump_root", type=str, required=True, help="receives <data directory>/regions for each data directory"
    )
    config, options = parse(parser)

    from speechclip.common.devices import pick_device
    from speechclip.common.files import check_folder
    from speechclip.data.kaldi import DataDir
    from speechclip.features.regions import store_patches
    from speechclip.model.encoders.clip import load_clip

    if not config.model.clip.path:
        raise UserError("model.clip.path: not set. Patch tokens need a CLIP.")
    check_folder(Path(options.dump_root))
    clip = load_clip(config.model.clip).to(pick_device())
    for path in options.data_dirs:
        directory = DataDir.load(path)
        out = Path(options.dump_root) / directory.path.name
        print(f"{out}: regions of {store_patches(directory, out, clip, stop=stop)} images")


if __name__ == "__main__":
    main()
