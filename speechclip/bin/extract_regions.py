"""Stage 2: store regions of the images, for the head fast_vgs."""

from __future__ import annotations

import functools
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.errors import UserError
from speechclip.common.shutdown import GracefulShutdown
from speechclip.config import build_parser, parse


@stage_script
def main() -> None:
    """Store regions of the kind model.head.fast_vgs.regions for the images of the data directories.

    butd copies published features of 36 regions (--region_files), frcnn runs torchvision's Faster R-CNN, and clip takes
    the patch tokens of model.clip. After SIGTERM it stores the finished images and exits with status 75. A second call
    resumes.
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
    from speechclip.data.regions import region_folder
    from speechclip.features.regions import copy_regions, detected_regions, extract_regions, patch_regions
    from speechclip.model.encoders.clip import load_clip
    from speechclip.model.encoders.detector import load_detector

    kind = config.model.head.fast_vgs.regions
    files = [Path(name) for name in options.region_files.split(",") if name]
    if kind == "butd" and not files:
        raise UserError(
            "--region_files: not set. FaST-VGS reads published region features. Give their files, or set "
            "model.head.fast_vgs.regions to frcnn or clip."
        )
    check_folder(Path(options.dump_root))
    source, find = None, None
    if kind == "clip":
        clip = load_clip(config.model.clip).to(pick_device())
        source, find = clip.description, functools.partial(patch_regions, clip)
    elif kind == "frcnn":
        detector = load_detector(options.detector)
        detector.model.to(pick_device())
        source, find = detector.description, functools.partial(detected_regions, detector)
    for data in options.data_dirs:
        directory = DataDir.load(data)
        dump = Path(options.dump_root) / directory.path.name
        if source is None or find is None:
            count = copy_regions(directory, dump, files)
        else:
            count = extract_regions(directory, dump, kind, source, find, stop=stop)
        print(f"{region_folder(dump, kind)}: {len(directory.images)} images, {count} of them now")


if __name__ == "__main__":
    main()
