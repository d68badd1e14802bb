"""Image regions in a store: CLIP's patch tokens with the cells of their grid as boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from speechclip.common.errors import Stopped
from speechclip.data.kaldi import DataDir
from speechclip.data.regions import FOLDER, Regions, RegionWriter, grid_boxes
from speechclip.features.clip import batches_of_pixels
from speechclip.model.encoders.clip import OpenClip


def store_patches(directory: DataDir, out: Path, clip: OpenClip, *, stop: Callable[[], bool] = lambda: False) -> int:
    """Write the patch tokens of a data directory's images to ``out``/regions.

    Images that an interrupted call has stored are skipped. Regions of another CLIP are replaced.

    Args:
        directory: the data directory.
        out: folder of the features of the data directory.
        clip: CLIP.
        stop: called after each batch. If it returns True, the finished images are stored.

    Returns:
        The number of images.

    Raises:
        UserError: a file is not an image, or the image tower has no patch tokens.
        Stopped: ``stop`` returned True.
    """
    source = {**clip.description, "kind": "clip"}
    writer = RegionWriter(out / FOLDER, source, replace=True)
    with writer:
        left = [item for item in directory.images if item not in writer.finished]
        done = 0
        for pixels in batches_of_pixels([Path(directory.images[item]) for item in left], clip):
            patches = clip.encode_patches(pixels)
            boxes = grid_boxes(patches.rows, patches.columns)
            for tokens in patches.tokens.cpu():
                writer.add_image(left[done], Regions(tokens, boxes))
                done += 1
            if stop() and done < len(left):
                writer.flush()
                raise Stopped(f"{out / FOLDER}: stopped after {done} of {len(left)} images, which are stored")
    return len(directory.images)
