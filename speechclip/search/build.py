"""Build an index from a folder of images, from the images of a data directory, or from precomputed embeddings."""

from __future__ import annotations

import dataclasses
import io
import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from speechclip.common.errors import UserError
from speechclip.common.files import check_folder, replace_folder, write_json
from speechclip.common.parallel import map_ahead
from speechclip.common.provenance import provenance
from speechclip.data.embeddings import embeddings_source, load_embeddings
from speechclip.data.images import load_image
from speechclip.data.kaldi import read_table
from speechclip.search.index import (
    EXACT,
    INFO,
    INVERTED,
    LISTS,
    NOT_INDEXED,
    VECTORS,
    IndexInfo,
    joint_space,
    model_reference,
    read_info,
    thumbnail_path,
)
from speechclip.search.items import ITEMS, Items
from speechclip.search.neighbours import (
    BLOCK,
    EXACT_UP_TO,
    build_inverted_file,
    default_lists,
    default_probes,
    write_inverted_file,
)

if TYPE_CHECKING:
    from torch import Tensor

    from speechclip.api import SpeechCLIP
    from speechclip.model.encoders.clip import OpenClip

logger = logging.getLogger(__name__)

THUMBNAIL_SIZE, THUMBNAIL_QUALITY = 320, 85  # pixels of the longer side, JPEG quality
BATCH = 64  # images that are embedded at once
LOG_SECONDS = 10.0
#: Formats that Pillow registers and does not decode by itself (EPS starts Ghostscript).
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_NOT_AN_IMAGE = "not an image format that Pillow reads"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Structure:
    """The structure of an index.

    Attributes:
        kind: "exact", "ivf", or "auto", which depends on the number of images.
        lists: number of lists of ivf; 0 for the default.
        probes: number of lists that a query searches; 0 for the default.
        seed: seed of the k-means that finds the lists.
    """

    kind: str = "auto"
    lists: int = 0
    probes: int = 0
    seed: int = 0


def image_suffixes() -> set[str]:
    """Return the file name suffixes, in lower case, of all image formats that Pillow decodes."""
    return {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_DECODED
    }


def find_images(source: str | Path, leave_out: Path | None = None) -> dict[str, Path]:
    """Find the images of a folder.

    Args:
        source: a data directory with ``img.scp``, or a folder whose image files are found at any depth. Hidden files,
            other indexes, and folders named ``*.part`` and ``*.old`` are ignored.
        leave_out: a folder that is not searched (the index itself).

    Returns:
        Files by id, sorted. The id of a file is its path below ``source``.

    Raises:
        UserError: the folder is missing, or it has no images.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is not a folder' if folder.exists() else 'no such folder'}")
    if (folder / "img.scp").is_file():
        return {key: Path(value) for key, value in sorted(read_table(folder / "img.scp").items())}
    suffixes = image_suffixes()
    images = [path for path in _walk(folder, leave_out) if path.suffix.lower() in suffixes]
    if not images:
        raise UserError(f"{folder}: no images and no img.scp. Every image format that Pillow decodes is supported.")
    return {printable(path.relative_to(folder).as_posix()): path for path in images}


def find_other_files(source: str | Path, leave_out: Path | None = None) -> list[Path]:
    """Return the files of a folder that :func:`find_images` does not take for images, sorted. See there."""
    folder, suffixes = Path(source), image_suffixes()
    if (folder / "img.scp").is_file():
        return []
    return [path for path in _walk(folder, leave_out) if path.suffix.lower() not in suffixes]


def _walk(folder: Path, leave_out: Path | None) -> list[Path]:
    """Return all files below a folder that may be indexed, sorted."""
    skip = leave_out.resolve() if leave_out is not None else None
    files: list[Path] = []
    for name, folders, names in os.walk(folder):
        here = Path(name)
        folders[:] = [child for child in folders if not _is_ignored(here / child) and (here / child).resolve() != skip]
        files += [here / child for child in names if not child.startswith(".") and (here / child).is_file()]
    return sorted(files)


def _is_ignored(folder: Path) -> bool:
    """Return whether a folder is hidden, an index, or a temporary sibling of one (see `replace_folder`)."""
    return (
        folder.name.startswith(".")
        or folder.suffix in (".part", ".old")
        or ((folder / INFO).is_file() and (folder / ITEMS).is_file())
    )


def printable(name: str) -> str:
    r"""Return a file name as valid, one-line Unicode: control characters and undecodable bytes become ``\xNN``."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found.group()) & 0xFF:02x}", name)


def index_images(
    model: SpeechCLIP, model_path: str | Path, images: Mapping[str, Path], out: str | Path,
    structure: Structure = Structure(), others: Sequence[Path] = (),
) -> IndexInfo:  # fmt: skip
    """Embed images with the model's CLIP and write an index of them with thumbnails.

    The images are decoded on all CPUs while CLIP works. In memory are one decoded image per CPU and the inputs of CLIP
    for two batches, whatever the size of the images. An image that cannot be read is logged and left out.

    Args:
        model: the model.
        model_path: the place of the model, which the index stores.
        images: files by id.
        out: folder of the index.
        structure: the structure of the index.
        others: other files of the image folder, which the index lists as not indexed.

    Raises:
        UserError: no image can be read, the model has no CLIP, or ``out`` is a folder that is not an index.
    """
    target, clip = check_target(out), model.network.require_clip()

    def write(folder: Path) -> None:
        ids: list[str] = []
        files: list[str] = []
        vectors = []
        not_indexed = [(path, _NOT_AN_IMAGE) for path in others]
        for batch in _batches(images, clip, not_indexed):
            for row, image in enumerate(batch, start=len(ids)):
                _write_thumbnail(thumbnail_path(folder, row), image.thumbnail)
            vectors.append(clip.encode_pixels(_stack([image.pixels for image in batch])).cpu().numpy())
            ids += [image.id for image in batch]
            files += [str(images[image.id].resolve()) for image in batch]
        if not ids:
            raise UserError(f"{target}: not written. None of the {len(images)} images can be read.")
        space, reference = joint_space(model), model_reference(model_path, target)
        info = write_index(folder, ids, np.concatenate(vectors), structure, space=space, model=reference, files=files)
        _save_info(folder, dataclasses.replace(info, thumbnails=True, not_indexed=len(not_indexed)))
        _list_not_indexed(folder, target, not_indexed)

    replace_folder(target, write)
    return read_info(target)


def index_embeddings(
    model: SpeechCLIP, model_path: str | Path, embeddings: str | Path, out: str | Path,
    images: Mapping[str, Path] | None = None, structure: Structure = Structure(),
) -> IndexInfo:  # fmt: skip
    """Write an index of precomputed embeddings.

    Args:
        model: a model that was trained for the joint space of the embeddings. Their width is checked, and their CLIP if
            the file names it.
        model_path: the place of the model, which the index stores.
        embeddings: an ``.npz`` file with ``ids`` [N] and ``embeddings`` [N, D].
        out: folder of the index.
        images: image files for thumbnails, by id or by id without the suffix.
        structure: the structure of the index.

    Raises:
        UserError: a file cannot be read, or the embeddings do not fit the model or the images.
    """
    target = check_target(out)
    ids, table = load_embeddings(embeddings)
    if table.shape[1] != model.network.dimensions.joint:
        raise UserError(f"{embeddings}: {table.shape[1]} dimensions, {model_path} has {model.network.dimensions.joint}")
    source, space = embeddings_source(embeddings).get("weights"), joint_space(model)
    if source and model.network.clip is not None and space != f"clip:{source}":
        raise UserError(f"{embeddings}: computed by another CLIP than that of {model_path}")
    by_id = _by_id(images or {})
    files = [str(by_id[item].resolve()) if item in by_id else "" for item in ids]
    if images and not any(files):
        raise UserError(f"{embeddings}: none of its ids is one of the {len(images)} images (the first is {ids[0]!r})")
    rows = [row for row, file in enumerate(files) if file]

    def write(folder: Path) -> None:
        reference = model_reference(model_path, target)
        info = write_index(folder, ids, table, structure, space=space, model=reference, files=files if images else [])
        count = 0
        thumbnails = map_ahead(lambda row: _try_thumbnail(Path(files[row])), rows, ahead=2 * BATCH)
        for row, thumbnail in zip(rows, thumbnails):
            if isinstance(thumbnail, UserError):
                logger.info("no thumbnail: %s", printable(str(thumbnail)))
            else:
                _write_thumbnail(thumbnail_path(folder, row), thumbnail)
                count += 1
        _save_info(folder, dataclasses.replace(info, thumbnails=count > 0))

    replace_folder(target, write)
    return read_info(target)


def write_index(
    folder: Path, ids: Sequence[str], vectors: NDArray[Any], structure: Structure, *, space: str, model: str,
    files: Sequence[str] = (),
) -> IndexInfo:  # fmt: skip
    """Write all files of an index except the thumbnails into an existing folder.

    Args:
        folder: the folder.
        ids: ids of the images, [N].
        vectors: [N, D], L2-normalised.
        structure: the structure of the index.
        space: see :class:`~speechclip.search.index.IndexInfo`.
        model: see :class:`~speechclip.search.index.IndexInfo`.
        files: image files, [N], or empty.
    """
    count, dim = vectors.shape
    kind = structure.kind if structure.kind != "auto" else EXACT if count <= EXACT_UP_TO else INVERTED
    lists = probes = 0
    if kind == INVERTED:
        lists = structure.lists or default_lists(count)
        probes = min(structure.probes or default_probes(lists), lists)
        write_inverted_file(build_inverted_file(vectors, lists, structure.seed), folder / LISTS)
    stored = np.lib.format.open_memmap(
        folder / VECTORS, mode="w+", dtype=np.float32 if kind == EXACT else np.float16, shape=(count, dim)
    )
    for start in range(0, count, BLOCK):
        stored[start : start + BLOCK] = vectors[start : start + BLOCK]
    stored.flush()
    write_json(folder / ITEMS, Items(list(ids), list(files)).as_dict())
    origin = provenance(command=None, seed=structure.seed, data=[])
    info = IndexInfo(kind, count, dim, space, model, thumbnails=False, lists=lists, probes=probes, provenance=origin)
    _save_info(folder, info)
    return info


def check_target(out: str | Path) -> Path:
    """Return the folder of an index that may be written: a new or empty folder, or an index that will be replaced.

    Raises:
        UserError: the folder holds something else.
    """
    target = Path(out)
    check_folder(target.parent)
    if target.exists() and not (target / INFO).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an index. Give another folder with --out.")
    return target


class _Prepared(NamedTuple):
    """An image that is ready for CLIP: its id, input of CLIP [3, side, side], and thumbnail (JPEG)."""

    id: str
    pixels: Tensor
    thumbnail: bytes


def _batches(
    images: Mapping[str, Path], clip: OpenClip, not_indexed: list[tuple[Path, str]]
) -> Iterator[list[_Prepared]]:
    """Yield the images that can be read, a batch at a time, and add the other ones to ``not_indexed``."""

    def prepare(item: str) -> _Prepared | UserError:
        try:
            image = load_image(images[item])
        except UserError as error:  # one bad image does not stop an index of thousands
            return error
        return _Prepared(item, clip.preprocess(image), _thumbnail(image))

    def readable() -> Iterator[_Prepared]:
        began = logged = time.monotonic()
        results = map_ahead(prepare, images, ahead=2 * BATCH)
        for count, (item, result) in enumerate(zip(images, results), start=1):
            if isinstance(result, UserError):
                not_indexed.append((images[item], str(result)))
                logger.info("left out: %s", printable(str(result)))
            else:
                yield result
            now = time.monotonic()
            if now - logged > LOG_SECONDS:
                logged, rate = now, count / (now - began)
                left = (len(images) - count) / rate
                logger.info("%d/%d images, %.1f images/s, %.0f s left", count, len(images), rate, left)

    prepared = readable()
    while batch := list(itertools.islice(prepared, BATCH)):
        yield batch


def _stack(pixels: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(pixels)


def _try_thumbnail(path: Path) -> bytes | UserError:
    """Return the thumbnail of an image file, or the error if it cannot be read."""
    try:
        return _thumbnail(load_image(path))
    except UserError as error:
        return error


def _thumbnail(image: Image.Image) -> bytes:
    """Return a small JPEG of an RGB image, which is reduced in place."""
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()


def _write_thumbnail(path: Path, thumbnail: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(thumbnail)


def _list_not_indexed(folder: Path, target: Path, not_indexed: Sequence[tuple[Path, str]]) -> None:
    """Write the list of files that are not indexed, with the reasons, and log their number by suffix."""
    if not not_indexed:
        return
    lines = [f"{printable(str(path))}\t{printable(reason)}\n" for path, reason in sorted(not_indexed)]
    (folder / NOT_INDEXED).write_text("".join(lines), encoding="utf-8")
    counts = Counter(printable(path.suffix.lower()) or "no suffix" for path, _ in not_indexed)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    logger.info("not indexed: %s. The files and reasons are listed in %s.", kinds, target / NOT_INDEXED)


def _by_id(images: Mapping[str, Path]) -> dict[str, Path]:
    """Return files by id, and by id without folders and suffix if only one file has that name."""
    stems: dict[str, list[Path]] = {}
    for item, path in images.items():
        stems.setdefault(Path(item).stem, []).append(path)
    return {**{stem: paths[0] for stem, paths in stems.items() if len(paths) == 1}, **images}


def _save_info(folder: Path, info: IndexInfo) -> None:
    write_json(folder / INFO, dataclasses.asdict(info))
