"""Regions of images: features with boxes, in a store by image id.

Every image of a store has the same number of regions, because cross-modal layers mask no region. A store is a feature
store (:mod:`speechclip.data.features`) with one tensor [1, regions, F + 4] per image: features, then box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.features import INDEX, FeatureStore, FeatureWriter

FOLDER = "regions"  # next to the embeddings of a split
CLIP_KIND = "clip"
BOX = 4  # x1, y1, x2, y2
_OUTSIDE = 1e-2  # detectors exceed the picture a little

#: The name of a row in RESULTS, by kind of regions. Only the first is comparable with the published numbers.
ROW_NAMES = {
    "butd": "FaST-VGS (BUTD-36)",
    "frcnn": "FaST-style (TV-FRCNN)",
    CLIP_KIND: "FaST-style (CLIP patches)",
}


class Regions(NamedTuple):
    """Regions of one image, or of several with one more dimension in front.

    Attributes:
        features: [R, F].
        boxes: [R, 4], (x1, y1, x2, y2) divided by the width and height of the image: 0 to 1.
    """

    features: Tensor
    boxes: Tensor


class RegionWriter(FeatureWriter):
    """Write a store of regions. Use it as a context manager; it resumes as :class:`FeatureWriter` does.

    Args:
        directory: folder of the store.
        source: description of the origin, with "kind": a key of :data:`ROW_NAMES`.
        dtype: of the stored values.
        options: see :class:`FeatureWriter`.
    """

    def __init__(
        self, directory: str | Path, source: Mapping[str, str], dtype: str = "float16", **options: Any
    ) -> None:
        super().__init__(directory, encoder=source, layers=[0], dtype=dtype, **options)

    def __enter__(self) -> RegionWriter:
        """Return the writer itself."""
        return self

    def add_image(self, image_id: str, regions: Regions) -> None:
        """Add the regions of an image.

        Raises:
            UserError: a box is outside the image, or the features cannot be stored.
        """
        boxes = regions.boxes.float()
        if bool(((boxes < -_OUTSIDE) | (boxes > 1 + _OUTSIDE)).any()) or not bool(boxes.isfinite().all()):
            raise UserError(
                f"{self.directory}: image {image_id!r} has a box outside of it. Boxes are divided by width and height."
            )
        joined = torch.cat([regions.features.float(), boxes.clamp(0, 1)], dim=1)
        self.add(image_id, joined[None])


class RegionStore:
    """Read a store of regions. Files are mapped into memory.

    Args:
        directory: folder of the store.

    Attributes:
        source: description of the origin.
        width: F, width of the features.
        count: R, regions of each image.

    Raises:
        MissingFileError: the store is missing.
        UserError: the store is damaged, or the numbers of regions differ.
    """

    def __init__(self, directory: str | Path) -> None:
        self._store = FeatureStore(directory)
        self.directory = self._store.directory
        self.source, self.width = self._store.encoder, self._store.dim - BOX
        counts = set(self._store.frames.tolist())
        if len(counts) != 1 or self.width < 1:
            raise UserError(
                f"{self.directory}: images with {min(counts)} to {max(counts)} regions. All images of a store have the "
                "same number. Extract the regions again."
            )
        self.count = counts.pop()

    @property
    def ids(self) -> Sequence[str]:
        """The images, sorted."""
        return self._store.ids

    def read(self, image_id: str) -> Regions:
        """Return the regions of an image in float32.

        Raises:
            UserError: the store does not have the image.
        """
        joined = self._store.read(image_id)[0].float()
        return Regions(joined[:, : self.width], joined[:, self.width :])

    def batch(self, image_ids: Sequence[str]) -> Regions:
        """Return the regions of N images in float32: features [N, R, F] and boxes [N, R, 4]."""
        joined = torch.stack([self._store.read(image_id)[0] for image_id in image_ids]).float()
        return Regions(joined[..., : self.width], joined[..., self.width :])

    def check_images(self, image_ids: Sequence[str]) -> None:
        """Raise MissingFileError if an image has no regions."""
        missing = [item for item in image_ids if item not in self._store]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise MissingFileError(self.directory / INDEX, f"no regions of image {missing[0]!r}{more}")


def region_folder(dump: str | Path, kind: str) -> Path:
    """Return the folder of the regions of a kind, next to the embeddings of a split."""
    return Path(dump) / (FOLDER if kind == CLIP_KIND else f"{FOLDER}_{kind}")


def load_regions(dump: str | Path, kind: str, image_ids: Sequence[str]) -> RegionStore:
    """Open the regions of a kind for the images of a split.

    Raises:
        MissingFileError: the store or the regions of an image are missing.
        UserError: the store is damaged, or it holds regions of another kind.
    """
    store = RegionStore(region_folder(dump, kind))
    if store.source.get("kind") != kind:
        raise UserError(
            f"{store.directory}: regions of kind {store.source.get('kind')!r}, not {kind!r}. Extract the regions again."
        )
    store.check_images(image_ids)
    return store


def grid_boxes(rows: int, columns: int) -> Tensor:
    """Return the cells of a grid as boxes, row by row: [rows * columns, 4], from 0 to 1."""
    top, left = np.meshgrid(np.arange(rows) / rows, np.arange(columns) / columns, indexing="ij")
    cells = np.stack([left, top, left + 1 / columns, top + 1 / rows], axis=-1)
    return torch.from_numpy(cells.reshape(-1, BOX)).float()
