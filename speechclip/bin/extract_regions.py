"""Stage 2: store regions of the images, for rerankers and the head fast_vgs."""

from __future__ import annotations

import functools
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.errors import UserError
from speechclip.common.shutdown import GracefulShutdown
from speechclip.config import build_parser, parse


@stage_script
def main() -> None:
    """Store regions for the images of the data directories: those that the configured head reads.

    The head fast_vgs reads the kind model.head.fast_vgs.regions, every other head clip. butd copies published
    features of 36 regions (--region_files), frcnn runs torchvision's Faster R-CNN, and clip takes the patch tokens of
    model.clip.
    After SIGTERM it stores the finished images and exits with status 75. A second call resumes.
    """
    stop = GracefulShutdown().__enter__()
    parser = build_parser("speechclip.bin.extract_regions", main.__doc__ or "")
    parser.add_argument(
        "--data_dirs", type=list[str], required=True, help="data directories, e.g. '[data/train,data/dev]'"
    )
    parser.add_argument(
        "--dump_root", type=str, required=True, help="folder of the stores, with one folder per data directory"
    )
    parser.add_argument(
        "--region_files", type=str, default="",
        help="for butd: hdf5 files with their _imgid2idex.json, or LXMERT's tsv files; separated by commas",
    )  # fmt: skip
    parser.add_argument(
        "--detector", type=str, default="", help="for frcnn: file with the weights; empty: torchvision downloads them"
    )
    config, options = parse(parser)

    from speechclip.common.devices import pick_device
    from speechclip.common.files import check_folder
    from speechclip.data.kaldi import DataDir
    from speechclip.data.regions import CLIP_KIND, region_folder
    from speechclip.features.regions import copy_regions, detected_regions, extract_regions, store_patches
    from speechclip.model.encoders.clip import load_clip
    from speechclip.model.encoders.detector import load_detector
    from speechclip.model.heads.fast_vgs import region_kind

    kind = region_kind(config.model) or CLIP_KIND
    if kind == CLIP_KIND and not config.model.clip.path:
        raise UserError("model.clip.path: not set. Patch tokens need a CLIP.")
    files = [Path(name) for name in options.region_files.split(",") if name]
    if kind == "butd" and not files:
        raise UserError(
            "--region_files: not set. FaST-VGS reads published region features. Give their files, or set "
            "model.head.fast_vgs.regions to frcnn or clip."
        )
    check_folder(Path(options.dump_root))
    clip = load_clip(config.model.clip).to(pick_device()) if kind == "clip" else None
    detector = load_detector(options.detector) if kind == "frcnn" else None
    if detector is not None:
        detector.model.to(pick_device())
    for data in options.data_dirs:
        directory = DataDir.load(data)
        out = Path(options.dump_root) / directory.path.name
        if clip is not None:
            count = store_patches(directory, out, clip, stop=stop)
        elif detector is not None:
            find = functools.partial(detected_regions, detector)
            count = extract_regions(directory, out, kind, detector.description, find, stop=stop)
        else:
            count = copy_regions(directory, out, files)
        print(f"{region_folder(out, kind)}: regions of {count} images")


if __name__ == "__main__":
    main()
