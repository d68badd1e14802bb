"""The files that an index is made of: pictures and recordings below a folder, or those of a data directory."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from speechclip.common.errors import UserError
from speechclip.data.kaldi import read_table
from speechclip.search.index import INFO
from speechclip.search.items import IMAGE, ITEMS, RECORDING

#: Formats that Pillow registers and does not decode by itself (EPS starts Ghostscript).
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
#: Suffixes of the formats that `speechclip.data.audio` decodes.
AUDIO_SUFFIXES = frozenset({
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".htk", ".mp3", ".nist", ".oga", ".ogg", ".opus", ".rf64", ".snd",
    ".sph", ".w64", ".wav", ".wave",
})  # fmt: skip
NO_IMAGE = "not an image format that Pillow reads"
NO_RECORDING = "not an audio format that is supported"
NEITHER = "neither an image format that Pillow reads nor an audio format that is supported"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Sources:
    """The files that are indexed.

    Attributes:
        images: pictures by id, sorted.
        recordings: recordings by id, sorted.
        others: files of the same folders that are not indexed, with the reason.
        folders: the folder of each kind.
    """

    images: Mapping[str, Path] = field(default_factory=dict)
    recordings: Mapping[str, Path] = field(default_factory=dict)
    others: tuple[tuple[Path, str], ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that an id names one item."""
        for item in self.images.keys() & self.recordings.keys():
            raise UserError(
                f"{self.recordings[item]}: its id {item!r} is also that of {self.images[item]}. Rename one of them."
            )


def find_sources(images: str = "", recordings: str = "", leave_out: Path | None = None) -> Sources:
    """Find pictures and recordings.

    Args:
        images: folder of pictures, or data directory with ``img.scp``; "" for no pictures.
        recordings: folder of recordings, or data directory with ``wav.scp``; "" for no recordings.
        leave_out: a folder that is not searched (the index itself).

    Raises:
        UserError: see :func:`find_images` and :func:`find_recordings`.
    """
    folders = {kind: folder for kind, folder in ((IMAGE, images), (RECORDING, recordings)) if folder}
    both = len(folders) == 2 and Path(images).resolve() == Path(recordings).resolve()
    others: list[tuple[Path, str]] = []
    if both:
        suffixes = image_suffixes() | AUDIO_SUFFIXES
        others += [(path, NEITHER) for path in _others(Path(images), ("img.scp", "wav.scp"), suffixes, leave_out)]
    else:
        if images:
            others += [(path, NO_IMAGE) for path in find_other_files(images, leave_out)]
        if recordings:
            found = _others(Path(recordings), ("wav.scp",), AUDIO_SUFFIXES, leave_out)
            others += [(path, NO_RECORDING) for path in found]
    return Sources(
        find_images(images, leave_out) if images else {},
        find_recordings(recordings, leave_out) if recordings else {},
        tuple(others),
        {kind: str(Path(folder).resolve()) for kind, folder in folders.items()},
    )


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
        raise UserError(f"{folder}: {'is not a folder' if folder.exists() else 'no such folder'}. Check the path.")
    if (folder / "img.scp").is_file():
        return {key: Path(value) for key, value in sorted(read_table(folder / "img.scp").items())}
    suffixes = image_suffixes()
    images = [path for path in _walk(folder, leave_out) if path.suffix.lower() in suffixes]
    if not images:
        raise UserError(f"{folder}: no images and no img.scp. Every image format that Pillow decodes is supported.")
    return {printable(path.relative_to(folder).as_posix()): path for path in images}


def find_recordings(source: str | Path, leave_out: Path | None = None) -> dict[str, Path]:
    """Find the recordings of a folder. See :func:`find_images`; the table of a data directory is ``wav.scp``.

    Raises:
        UserError: the folder is missing, or it has no recordings.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is not a folder' if folder.exists() else 'no such folder'}. Check the path.")
    if (folder / "wav.scp").is_file():
        return {key: Path(value) for key, value in sorted(read_table(folder / "wav.scp").items())}
    found = [path for path in _walk(folder, leave_out) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not found:
        raise UserError(f"{folder}: no recordings and no wav.scp. Supported are {' '.join(sorted(AUDIO_SUFFIXES))}.")
    return {printable(path.relative_to(folder).as_posix()): path for path in found}


def find_other_files(source: str | Path, leave_out: Path | None = None) -> list[Path]:
    """Return the files of a folder that :func:`find_images` does not take for images, sorted. See there."""
    return _others(Path(source), ("img.scp",), image_suffixes(), leave_out)


def _others(folder: Path, tables: Collection[str], suffixes: Collection[str], leave_out: Path | None) -> list[Path]:
    if any((folder / table).is_file() for table in tables):
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
