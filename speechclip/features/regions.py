"""The extraction of image regions: patch tokens of CLIP, a detector, or published region features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from speechclip.common.errors import Stopped, UserError
from speechclip.common.parallel import map_ahead
from speechclip.data.images import load_image
from speechclip.data.kaldi import DataDir
from speechclip.data.region_files import read_region_file
from speechclip.data.regions import CLIP_KIND, Regions, RegionWriter, grid_boxes, region_folder
from speechclip.features.clip import batches_of_pixels
from speechclip.model.encoders.clip import OpenClip
from speechclip.model.encoders.detector import Detector

BATCH = 64
Stop = Callable[[], bool]


def store_patches(directory: DataDir, out: Path, clip: OpenClip, *, stop: Stop = lambda: False) -> int:
    """Write the patch tokens of a data directory's images, with the cells of the grid as boxes.

    The boxes are those of CLIP's square input. Images that an interrupted call has stored are skipped. Regions of
    another CLIP are replaced.

    Args:
        directory: the data directory.
        out: folder of the features of the data directory.
        clip: CLIP.
        stop: called after each image. If it returns True, the finished images are stored.

    Returns:
        The number of images.

    Raises:
        UserError: a file is not an image, or the image tower has no patch tokens.
        Stopped: ``stop`` returned True.
    """

    def find(paths: Sequence[Path]) -> Iterator[Regions]:
        for pixels in batches_of_pixels(paths, clip):
            patches = clip.encode_patches(pixels)
            boxes = grid_boxes(patches.rows, patches.columns)
            for tokens in patches.tokens.cpu():
                yield Regions(tokens, boxes)

    return extract_regions(directory, out, CLIP_KIND, clip.description, find, stop=stop)


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
        The number of images.

    Raises:
        UserError: an image cannot be read.
        Stopped: ``stop`` returned True.
    """
    images = dict(directory.images)
    out = region_folder(dump, kind)
    with RegionWriter(out, {**source, "kind": kind}, dtype, replace=True) as writer:
        todo = [item for item in images if item not in writer.finished]
        for count, (item, regions) in enumerate(zip(todo, find([Path(images[item]) for item in todo])), 1):
            writer.add_image(item, regions)
            if stop() and count < len(todo):
                writer.flush()
                raise Stopped(f"{out}: stopped after {count} of {len(todo)} images, which are stored")
    return len(images)


def copy_regions(directory: DataDir, dump: Path, files: Sequence[Path], *, dtype: str = "float32") -> int:
    """Store published region features of the images of a data directory.

    An image is found by its id, or by the name of its file without the ending, as in COCO.

    Args:
        directory: the data directory.
        dump: folder of its features.
        files: see :func:`speechclip.data.region_files.read_region_file`. Together they hold all images.
        dtype: of the stored values.

    Returns:
        The number of images.

    Raises:
        UserError: a file is missing or damaged, or no file holds an image.
    """
    names: dict[str, str] = {}
    for item, path in directory.images.items():
        names |= {Path(path).stem: item, item: item}
    out = region_folder(dump, "butd")
    described = {"kind": "butd", "files": " ".join(path.name for path in files)}
    with RegionWriter(out, described, dtype, replace=True) as writer:
        done = set(writer.finished)
        for file in files:
            for name, regions in read_region_file(file, set(names)):
                if names[name] not in done:
                    done.add(names[name])
                    writer.add_image(names[name], regions)
        missing = [item for item in directory.images if item not in done]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise UserError(f"{' '.join(map(str, files))}: no regions of image {missing[0]!r}{more}. Give more files.")
    return len(directory.images)
