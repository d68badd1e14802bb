"""Makes an index: from a folder of images, a data directory's images, or precomputed embeddings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.common.files import replace_folder
from speechclip.common.provenance import provenance
from speechclip.data.embeddings import embeddings_source, load_embeddings
from speechclip.data.images import load_image
from speechclip.data.kaldi import read_table
from speechclip.search.index import (
    EXACT,
    INFO,
    INVERTED,
    ITEMS,
    LISTS,
    VECTORS,
    IndexInfo,
    joint_space,
    model_reference,
    read_info,
    thumbnail_path,
)
from speechclip.search.neighbours import (
    BLOCK,
    EXACT_UP_TO,
    build_inverted_file,
    default_lists,
    default_probes,
    write_inverted_file,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from speechclip.api import SpeechCLIP

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
THUMBNAIL_SIZE, THUMBNAIL_QUALITY = 320, 85  # pixels of the longer side, JPEG quality
BATCH = 64  # images embedded at once


@dataclasses.dataclass(frozen=True)
class Structure:
    """How an index is searched. kind: "exact", "ivf" or "auto" by the number; lists, probes: of ivf, 0 for the default.

    seed: of the k-means that finds the lists.
    """

    kind: str = "auto"
    lists: int = 0
    probes: int = 0
    seed: int = 0


def find_images(source: str | Path, leave_out: Path | None = None) -> dict[str, Path]:
    """Image id -> file, sorted by id: of ``img.scp`` where ``source`` has one, else of all image files below it.

    A file's id is its path below ``source``. leave_out: a folder that is not looked into (the index itself).
    Raises UserError for a missing folder or one without images.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    if (folder / "img.scp").is_file():
        return {key: Path(value) for key, value in sorted(read_table(folder / "img.scp").items())}
    skip = leave_out.resolve() if leave_out is not None else None
    files = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
        and (skip is None or not path.resolve().is_relative_to(skip))
    ]  # fmt: skip
    if not files:
        raise UserError(f"{folder}: no images ({' '.join(sorted(SUFFIXES))}) and no img.scp in it")
    return {path.relative_to(folder).as_posix(): path for path in sorted(files)}


def index_images(
    model: SpeechCLIP, model_path: str | Path, images: Mapping[str, Path], out: str | Path,
    structure: Structure = Structure(), log: Callable[[str], None] = print,
) -> IndexInfo:  # fmt: skip
    """Embed images (id -> file) with the model's CLIP and write an index of them, thumbnails included.

    A file that is no readable image is named and left out. Raises UserError where none is left, for a model without
    CLIP, and where ``out`` is a folder of something else.
    """
    target = check_target(out)

    def write(folder: Path) -> None:
        ids: list[str] = []
        files: list[str] = []
        parts = []
        for batch in _batches(images, log):
            for row, (_, image) in enumerate(batch, start=len(ids)):
                save_thumbnail(image, thumbnail_path(folder, row))
            parts.append(model.encode_image([image for _, image in batch]).cpu().numpy())
            ids += [item for item, _ in batch]
            files += [str(images[item].resolve()) for item, _ in batch]
        if not ids:
            raise UserError(f"{target}: not written, since none of the {len(images)} images can be read")
        space, reference = joint_space(model), model_reference(model_path, target)
        info = write_index(folder, ids, np.concatenate(parts), structure, space=space, model=reference, files=files)
        _save_info(folder, dataclasses.replace(info, thumbnails=True, skipped=len(images) - len(ids)))

    replace_folder(target, write)
    return read_info(target)


def index_embeddings(
    model: SpeechCLIP, model_path: str | Path, embeddings: str | Path, out: str | Path,
    images: Mapping[str, Path] | None = None, structure: Structure = Structure(), log: Callable[[str], None] = print,
) -> IndexInfo:  # fmt: skip
    """Write an index of precomputed embeddings (``.npz`` with ``ids`` and ``embeddings``).

    images: files for thumbnails, by id or by id without the suffix. The embeddings have to be of the joint space the
    model was trained for: their width is checked, and their CLIP where the file names it.
    Raises UserError for what cannot be read or does not fit.
    """
    target = check_target(out)
    ids, table = load_embeddings(embeddings)
    if table.shape[1] != model.network.dimensions.joint:
        raise UserError(f"{embeddings}: {table.shape[1]} dimensions, {model_path} has {model.network.dimensions.joint}")
    made_by, space = embeddings_source(embeddings).get("weights"), joint_space(model)
    if made_by and model.network.clip is not None and space != f"clip:{made_by}":
        raise UserError(f"{embeddings}: made by another CLIP than that of {model_path}")
    by_id = _by_id(images or {})
    files = [str(by_id[item].resolve()) if item in by_id else "" for item in ids]
    if images and not any(files):
        raise UserError(f"{embeddings}: its ids name none of the {len(images)} images (the first is {ids[0]!r})")

    def write(folder: Path) -> None:
        reference = model_reference(model_path, target)
        info = write_index(folder, ids, table, structure, space=space, model=reference, files=files if images else [])
        made = 0
        for row, file in enumerate(files):
            image = _try_image(Path(file), log) if file else None
            if image is not None:
                save_thumbnail(image, thumbnail_path(folder, row))
                made += 1
        _save_info(folder, dataclasses.replace(info, thumbnails=made > 0))

    replace_folder(target, write)
    return read_info(target)


def write_index(
    folder: Path, ids: Sequence[str], vectors: NDArray[Any], structure: Structure, *, space: str, model: str,
    files: Sequence[str] = (),
) -> IndexInfo:  # fmt: skip
    """Write all files of an index but the thumbnails into an existing folder.

    Args:
        ids, files: row by row; no files for none. vectors: [N, D], L2-normalised. space, model: see
            :class:`~speechclip.search.index.IndexInfo`.
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
    (folder / ITEMS).write_text(json.dumps({"ids": list(ids), "files": list(files)}) + "\n", encoding="utf-8")
    origin = provenance(command=None, seed=structure.seed, data=[])
    info = IndexInfo(kind, count, dim, space, model, thumbnails=False, lists=lists, probes=probes, provenance=origin)
    _save_info(folder, info)
    return info


def save_thumbnail(image: Image, path: Path) -> None:
    """Write a small JPEG of an RGB image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    small.save(path, quality=THUMBNAIL_QUALITY)


def _batches(images: Mapping[str, Path], log: Callable[[str], None]) -> Iterator[list[tuple[str, Image]]]:
    """The images that can be read, with their ids, a batch at a time."""
    batch: list[tuple[str, Image]] = []
    for item, path in images.items():
        image = _try_image(path, log)
        if image is not None:
            batch.append((item, image))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _try_image(path: Path, log: Callable[[str], None]) -> Image | None:
    """An image, or None with a word on why not: one bad picture among thousands is no reason to have no index."""
    try:
        return load_image(path)
    except UserError as error:
        log(f"left out: {error}")
        return None


def _by_id(images: Mapping[str, Path]) -> dict[str, Path]:
    """Files by id, and by id without folders and suffix where that names one file alone."""
    stems: dict[str, list[Path]] = {}
    for item, path in images.items():
        stems.setdefault(Path(item).stem, []).append(path)
    return {**{stem: paths[0] for stem, paths in stems.items() if len(paths) == 1}, **images}


def check_target(out: str | Path) -> Path:
    """The folder an index goes to: new, empty, or an index to be replaced; nothing else is ever overwritten.

    Raises UserError for anything else that is there.
    """
    target = Path(out)
    if target.exists() and not (target / INFO).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: exists and is no index; name another folder with --out")
    return target


def _save_info(folder: Path, info: IndexInfo) -> None:
    (folder / INFO).write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n", encoding="utf-8")
