"""Download and unpack published files, with mirrors, resume, checksums and a check of the free space.

A part of a corpus is complete if all paths that it leaves exist. Files that no host provides are listed with the folder
to put them in.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import lzma
import os
import shutil
import socket
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from speechclip.common.errors import UserError, writing
from speechclip.common.files import make_folder

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without a byte
_SLACK = 1 << 25  # bytes; an archive may unpack to twice its documented size and this
_MOST_UNKNOWN = 20 << 30  # bytes that an archive of unknown size may unpack to
_MOST_FILES = 10_000_000  # in an archive
_ATTEMPTS = 5  # in a row without a byte
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_UNSAFE: type[Exception] = getattr(tarfile, "FilterError", tarfile.TarError)  # a member outside of the folder
Progress = Callable[[int, int | None], None]  # bytes so far, and in total or None
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        name: of the file.
        urls: mirrors, tried in order; empty if no address is known.
        bytes: approximate size of the file; 0 if it is not known.
        leaves: paths, relative to the folder, that exist if this part is complete.
        unpacked: approximate size of the unpacked content in bytes; 0 for a file that is not unpacked.
        checksum: ``md5:...`` or ``sha256:...``; empty if none is published.
        into: folder that the file is unpacked into; None for a file that is not unpacked.
        about: description and publisher, for messages.
    """

    name: str
    urls: tuple[str, ...]
    bytes: int
    leaves: tuple[str, ...]
    unpacked: int = 0
    checksum: str = ""
    into: str | None = None
    about: str = ""


def download(
    remotes: Sequence[RemoteFile], folder: Path, *, mirror: str = "", pause: float = 2.0,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Download and unpack the files that ``folder`` lacks.

    Args:
        remotes: the files.
        folder: where they belong. Its other files are kept.
        mirror: URL of a folder with the files, tried first.
        pause: seconds before a second attempt; doubled before each further one.
        progress: called with the bytes so far and in total.

    Raises:
        UserError: too little free space, or parts that no host provides. The message lists all of them with their
            paths.
    """
    if mirror:
        remotes = [replace(item, urls=(f"{mirror.rstrip('/')}/{item.name}", *item.urls)) for item in remotes]
    missing = [remote for remote in remotes if not _is_complete(remote, folder)]
    for remote in remotes:
        if remote not in missing:
            logger.info("%s: found", remote.name)
    if not missing:
        return
    make_folder(folder)
    _check_space(missing, folder)
    failed = []
    for remote in missing:
        try:
            archive = _fetch(remote, folder, pause, progress)
            if remote.into is not None:
                most = _SLACK + 2 * remote.unpacked if remote.unpacked else _MOST_UNKNOWN
                _unpack(archive, folder / remote.into, most)
                archive.unlink()
            if not _is_complete(remote, folder):
                raise UserError(f"{remote.name}: does not contain {' and '.join(remote.leaves)}")
        except UserError as error:
            if "disk full" in str(error):
                raise
            failed.append(f"{error}. Put {' and '.join(remote.leaves)} into {folder} yourself ({remote.about}).")
    if failed:
        raise UserError(" | ".join(failed))


def announced_bytes(url: str, timeout: float = 10.0) -> int:
    """Return the size of a file in bytes that its host announces. The file is not downloaded.

    Args:
        url: address of the file.
        timeout: seconds without an answer before an error.

    Raises:
        UserError: the host does not answer, or does not announce a size.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "speechclip", "Range": "bytes=0-0"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            partial = response.status == 206
            found = response.headers.get("Content-Range", "").rpartition("/")[2] if partial else ""
            found = found or response.headers.get("Content-Length", "")
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise UserError(f"{url}: {getattr(error, 'reason', error) or type(error).__name__}. Check the path.") from error
    if not (found.isascii() and found.isdigit()):
        raise UserError(f"{url}: the host does not announce the size. Download the file to see its size.")
    return int(found)


def _is_complete(remote: RemoteFile, folder: Path) -> bool:
    return all((folder / path).exists() for path in remote.leaves)


def _check_space(remotes: Sequence[RemoteFile], folder: Path) -> None:
    """Check the space for all unpacked content and the largest archive. UserError if it does not suffice."""
    have = sum(
        (folder / f"{remote.name}.part").stat().st_size
        for remote in remotes
        if (folder / f"{remote.name}.part").exists()
    )
    kept = sum(remote.unpacked if remote.into is not None else remote.bytes for remote in remotes)
    archives = [remote.bytes for remote in remotes if remote.into is not None]
    needed = kept + max(archives, default=0) - have
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {', '.join(r.name for r in remotes)} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. "
            "Free some space."
        )


def _fetch(remote: RemoteFile, folder: Path, pause: float, progress: Progress | None) -> Path:
    """Return the path of the complete and checked file. UserError with the reason of every mirror if all fail."""
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    origin = folder / f"{remote.name}.part.url"
    if target.exists() and _matches(target, remote.checksum):
        return target
    reasons = []
    for url in remote.urls:
        # without a checksum, bytes of two mirrors must not be mixed
        if part.exists() and not remote.checksum and (not origin.exists() or origin.read_text() != url):
            part.unlink()
        origin.write_text(url)
        try:
            transfer_file(url, part, pause, progress)
        except MirrorFailure as failure:
            reasons.append(f"{url}: {failure}")
            continue
        if not _matches(part, remote.checksum):
            part.unlink()
            reasons.append(f"{url}: its checksum is not {remote.checksum}")
            continue
        part.replace(target)
        origin.unlink()
        return target
    raise UserError(f"{remote.name}: no host provides it: {'; '.join(reasons) or 'no address is known'}")


class MirrorFailure(Exception):
    """A mirror does not provide the file."""


def transfer_file(url: str, part: Path, pause: float, progress: Progress | None, *, quiet: bool = False) -> None:
    """Append the missing bytes to ``part``. Try again after an interruption, as long as there is progress."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, before, progress, logging.DEBUG if quiet else logging.INFO)
            return
        except (urllib.error.URLError, HTTPException, OSError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429):
                raise MirrorFailure(f"HTTP status {error.code}") from error
            # the number of a TLS error is not an errno
            number = getattr(error, "errno", None)
            if number in _DISK_ERRORS and not isinstance(error, (urllib.error.URLError, ssl.SSLError)):
                raise OSError(number, os.strerror(number), str(part)) from error
            after = part.stat().st_size if part.exists() else 0
            fruitless = 0 if after > before else fruitless + 1
            if fruitless >= _ATTEMPTS or _hopeless(error):
                raise MirrorFailure(str(getattr(error, "reason", error)) or type(error).__name__) from error
            logger.info("%s: interrupted after %.1f MB (%s), trying again", part.stem, after / 1e6, error)
            time.sleep(min(60.0, pause * 2**fruitless))


def _hopeless(error: Exception) -> bool:
    """Return whether the host does not exist or refuses connections, so that a second attempt is useless."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, (socket.gaierror, ConnectionRefusedError))


def _transfer(url: str, part: Path, have: int, progress: Progress | None, level: int) -> None:
    """Send one request, from byte ``have`` if the server supports it. OSError if the response is too short."""
    request = urllib.request.Request(
        url, headers={"User-Agent": "speechclip"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the part is complete, or it is not a part of this file
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            part.unlink()
            raise ConnectionError("the part is longer than the file") from error
        raise
    with response, writing(part):
        partial = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        length = response.headers.get("Content-Length")
        start = have if partial else 0
        total = start + int(length) if length is not None else None
        whole = "?" if total is None else f"{total / 1e6:.1f}"
        logger.log(level, "%s: %.1f of %s MB, from %s", part.stem, start / 1e6, whole, url)
        with part.open("ab" if partial else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                if progress is not None:
                    progress(file.tell(), total)
            size = file.tell()
    if total is not None and size != total:
        raise ConnectionError(f"{size} of {total} bytes")


def _matches(path: Path, checksum: str) -> bool:
    """Return whether a file has this checksum. The empty checksum fits every file."""
    if not checksum:
        return True
    kind, _, wanted = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == wanted


def _unpack(archive: Path, folder: Path, most: int) -> None:
    """Unpack a zip or tar file.

    Args:
        archive: the file.
        folder: where to unpack it. Nothing is written outside.
        most: largest size of the content, in bytes.

    Raises:
        UserError: the file is damaged, or its content is larger.
    """
    logger.info("%s: unpacking into %s", archive.name, folder)
    part = folder.with_name(f".{folder.name or 'root'}.{archive.name}.unpacking")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with writing(folder):
            if zipfile.is_zipfile(archive):
                _unzip(archive, part, most)
            else:
                with _tar(archive) as file:
                    if hasattr(tarfile, "data_filter"):
                        sizes = _Sizes(archive, most)
                        file.extractall(part, members=(sizes.add(item, item.size) for item in file), filter="data")
                    else:
                        raise UserError(
                            f"{archive}: the tarfile of this Python is not safe. Use Python's latest patch release."
                        )
            _merge(part, folder)
    except _UNSAFE as error:
        name = getattr(getattr(error, "tarinfo", None), "name", "?")
        raise UserError(
            f"{archive.name}: damaged archive ({name} is outside of the folder). Download it again."
        ) from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        with contextlib.suppress(OSError):
            archive.unlink()
        raise UserError(f"{archive.name}: damaged archive ({error}). Download it again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _tar(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive)
    except tarfile.ReadError as error:  # its message lists one problem per kind of archive
        raise tarfile.ReadError("neither zip nor tar") from error


class _Sizes:
    """The size of an archive's content, added up before it is unpacked. UserError if it is too large."""

    def __init__(self, archive: Path, most: int) -> None:
        self._archive, self._most, self._bytes, self._files = archive, most, 0, 0

    def add(self, item: T, size: int) -> T:
        """Count an item and return it."""
        self._bytes, self._files = self._bytes + size, self._files + 1
        if self._bytes > self._most or self._files > _MOST_FILES:
            raise UserError(
                f"{self._archive.name}: refused: would unpack to over {self._most / 1e6:.0f} MB or {_MOST_FILES} files."
                " Use the original archive."
            )
        return item


def _unzip(archive: Path, part: Path, most: int) -> None:
    with zipfile.ZipFile(archive) as file:
        root, sizes = part.resolve(), _Sizes(archive, most)
        for info in file.infolist():
            sizes.add(info, info.file_size)
        for name in file.namelist():
            if not (root / name).resolve().is_relative_to(root):
                raise zipfile.BadZipFile(f"{name} is outside of the folder")
        file.extractall(part)


def _merge(source: Path, target: Path) -> None:
    """Move the content of a folder into another one, folder by folder."""
    target.mkdir(parents=True, exist_ok=True)
    for item in sorted(source.iterdir()):
        place = target / item.name
        if item.is_dir() and place.is_dir():
            _merge(item, place)
        else:
            os.replace(item, place)
