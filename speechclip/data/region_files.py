"""Readers of published region features: hdf5 with an index, and LXMERT's tsv.

Both hold the 36 regions of a bottom-up-attention Faster R-CNN (Anderson et al., CVPR 2018, arXiv 1707.07998) for each
image of COCO, as FaST-VGS reads them: features of width 2048, and boxes in pixels.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import read_json
from speechclip.data.regions import BOX, Regions

INDEX_ENDING = "_imgid2idex.json"  # spelt so in the published files
_FEATURES_ENDING = "_imgfeat.hdf5"
#: Columns of LXMERT's tsv files.
TSV_COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
    "features",
)  # fmt: skip


def read_region_file(path: Path, wanted: set[str]) -> Iterator[tuple[str, Regions]]:
    """Yield the regions of the wanted images of a file.

    Args:
        path: an hdf5 file, with its index next to it, or LXMERT's tsv.
        wanted: ids of images, without folder and ending.

    Raises:
        MissingFileError: the file or its index is missing.
        UserError: the file is damaged, or not in one of these formats.
    """
    if not path.is_file():
        raise MissingFileError(path)
    if path.suffix in (".hdf5", ".h5"):
        return read_hdf5(path, wanted)
    if path.suffix == ".tsv":
        return read_tsv(path, wanted)
    raise UserError(f"{path}: not a file of regions. Give .hdf5 with {INDEX_ENDING}, or LXMERT's .tsv.")


def read_hdf5(path: Path, wanted: set[str]) -> Iterator[tuple[str, Regions]]:
    """Yield the wanted images of an hdf5 file. Its index maps ids to rows. See :func:`read_region_file`."""
    try:
        import h5py
    except ImportError as error:
        raise UserError("h5py: is missing. Install it: pip install 'speechclip[regions]'.") from error

    index = index_of(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: damaged or not hdf5 ({error}). Copy it again.") from error
    with file:
        missing = [name for name in ("img_h", "img_w", "features", "boxes") if name not in file]
        if missing:
            raise UserError(f"{path}: lacks {', '.join(missing)}. Give the published file of region features.")
        shapes = tuple(file["features"].shape), tuple(file["boxes"].shape)
        if len(shapes[0]) != 3 or shapes[1] != (*shapes[0][:2], BOX):
            raise UserError(
                f"{path}: features {list(shapes[0])} and boxes {list(shapes[1])} do not fit. Use the published file."
            )
        for image_id in sorted(wanted & index.keys(), key=index.__getitem__):  # in the order of the file
            row = index[image_id]
            if not 0 <= row < shapes[0][0]:
                raise UserError(
                    f"{path}: {image_id} is row {row} of {shapes[0][0]} in the index. The files do not fit."
                )
            size = float(file["img_w"][row]), float(file["img_h"][row])
            try:
                yield image_id, _relative(file["features"][row], file["boxes"][row], size, f"{path}: {image_id}")
            except OSError as error:
                raise UserError(f"{path}: damaged ({error}). Copy it again.") from error


def index_of(path: Path) -> dict[str, int]:
    """Return the rows of an hdf5 file by image id, from the json file next to it.

    Raises:
        MissingFileError: the index is missing.
        UserError: it is not a mapping of ids to rows, or there are several.
    """
    stem = path.name.removesuffix(_FEATURES_ENDING).removesuffix(path.suffix)
    near = path.with_name(stem + INDEX_ENDING)
    if not near.is_file():
        found = sorted(path.parent.glob("*" + INDEX_ENDING))
        if len(found) != 1:
            raise MissingFileError(near, "is missing. It maps image ids to rows of the hdf5 file.")
        near = found[0]
    rows = read_json(near)
    if not all(isinstance(row, int) and not isinstance(row, bool) for row in rows.values()):
        raise UserError(f"{near}: not a mapping of image ids to rows. Use the published file.")
    return {str(image_id): row for image_id, row in rows.items()}


def read_tsv(path: Path, wanted: set[str]) -> Iterator[tuple[str, Regions]]:
    """Yield the wanted images of LXMERT's tsv, whose arrays are base64. See :func:`read_region_file`."""
    limit = csv.field_size_limit(1 << 24)  # a row has 400 kB; csv refuses more than 128 kB by default
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
                if len(row) != len(TSV_COLUMNS):
                    raise UserError(
                        f"{path}: line {number}: {len(row)} columns, not {len(TSV_COLUMNS)}. Use the published file."
                    )
                values = dict(zip(TSV_COLUMNS, row))
                if values["img_id"] in wanted:
                    yield values["img_id"], _parse_row(values, f"{path}: line {number}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a tsv file of regions ({error}). Use the published file.") from error
    finally:
        csv.field_size_limit(limit)


def _parse_row(values: dict[str, str], where: str) -> Regions:
    try:
        count, size = int(values["num_boxes"]), (float(values["img_w"]), float(values["img_h"]))
        boxes = np.frombuffer(base64.b64decode(values["boxes"], validate=True), dtype="<f4").reshape(count, BOX)
        features = np.frombuffer(base64.b64decode(values["features"], validate=True), dtype="<f4").reshape(count, -1)
    except (ValueError, binascii.Error) as error:
        raise UserError(f"{where}: not a row of regions ({error}). Copy the file again.") from error
    return _relative(features, boxes, size, where)


def _relative(features: np.ndarray, boxes: np.ndarray, size: tuple[float, float], where: str) -> Regions:
    """Return regions with boxes divided by the width and height of the image."""
    if not all(np.isfinite(size)) or min(size) <= 0:
        raise UserError(f"{where}: an image of {size[0]:g}x{size[1]:g} pixels. Copy the file again.")
    scale = np.array([*size, *size], dtype=np.float32)
    return Regions(
        torch.from_numpy(np.array(features, dtype=np.float32)),
        torch.from_numpy(np.array(boxes, dtype=np.float32) / scale),
    )
