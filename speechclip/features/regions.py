"""The extraction of image regions: patch tokens of CLIP, a detector, or published region features."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from speechclip.common.errors import Stopped, UserError
from speechclip.common.files import lines_fingerprint
from speechclip.common.parallel import map_ahead
from speechclip.data.images import load_image
from speechclip.data.kaldi import DataDir
from speechclip.data.region_files import read_region_file
from speechclip.data.regions import Regions, RegionWriter, grid_boxes, region_folder
from speechclip.model.encoders.clip import OpenClip
from speechclip.model.encoders.detector import Detector

logger = logging.getLogger(__name__)

BATCH = 64
Stop = Callable[[], bool]


def patch_regions(clip: OpenClip, paths: Sequence[Path]) -> Iterator[Regions]:
    """Yield the patch tokens of each image, with the cells of the grid as boxes.

    The boxes are those of CLIP's square input. CLIP resizes the shorter side and cuts the centre.
    """
    decoded = map_ahead(lambda path: clip.preprocess(load_image(path)), paths, ahead=2 * BATCH)
    while batch := list(itertools.islice(decoded, BATCH)):
        tokens, grid = clip.encode_patches(torch.stack(batch))
        boxes = grid_boxes(*grid)
        for row in tokens.cpu():
            yield Regions(row, boxes)


def detected_regions(detector: Detector, paths: Sequence[Path]) -> Iterator[Regions]:
    """Yield the regions of a detector for each image."""
    for image in map_ahead(load_image, paths, ahead=BATCH):
        yield detector.find(image)


def extract_regions(
    directory: DataDir, dump: Path, kind: str, source: Mapping[str, str],
    find: Callable[[Sequence[Path]], Iterator[Regions]], *, dtype: str = "float16", stop: Stop = lambda: False,
) -> int:  # fmt: skip
    """Store the regions of the images of a data directory. A second call resumes.

    Args:
        directory: the data directory.
        dump: folder of its features.
        kind: see :data:`speechclip.data.regions.ROW_NAMES`.
        source: description of the model.
        find: yields the regions of each image file.
        dtype: of the stored values.
        stop: called after each image. If it returns True, the finished images are stored.

    Returns:
        The number of images that were computed now.

    Raises:
        UserError: an image cannot be read.
        Stopped: ``stop`` returned True.
    """
    images = dict(directory.images)
    described = {key: value for key, value in source.items() if key != "path"}
    described |= {"kind": kind, "images": lines_fingerprint(images)}
    out = region_folder(dump, kind)
    with RegionWriter(out, described, dtype, replace=True) as writer:
        todo = [item for item in images if item not in writer.finished]
        for count, (item, regions) in enumerate(zip(todo, find([Path(images[item]) for item in todo])), 1):
            writer.add_image(item, regions)
            if stop() and count < len(todo):
                writer.flush()
                raise Stopped(f"{out}: stopped after {count} of {len(todo)} images, which are stored")
    return len(todo)


def copy_regions(directory: DataDir, dump: Path, files: Sequence[Path], *, dtype: str = "float32") -> int:
    """Store published region features of the images of a data directory.

    An image is found by its id, or by the name of its file without the ending, as in COCO.

    Args:
        directory: the data directory.
        dump: folder of its features.
        files: see :func:`speechclip.data.region_files.read_region_file`. Together they hold all images.
        dtype: of the stored values.

    Returns:
        The number of images that were copied now.

    Raises:
        UserError: a file is missing or damaged, or no file holds an image.
    """
    names: dict[str, str] = {}
    for item, path in directory.images.items():
        names |= {Path(path).stem: item, item: item}
    described = {"images": lines_fingerprint(directory.images), "files": " ".join(path.name for path in files)}
    out = region_folder(dump, "butd")
    with RegionWriter(out, {"kind": "butd", **described}, dtype, replace=True) as writer:
        done = set(writer.finished)
        before = len(done)
        for file in files:
            for name, regions in read_region_file(file, set(names)):
                if names[name] not in done:
                    done.add(names[name])
                    writer.add_image(names[name], regions)
        missing = [item for item in directory.images if item not in done]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise UserError(f"{' '.join(map(str, files))}: no regions of image {missing[0]!r}{more}. Give more files.")
    return len(done) - before
