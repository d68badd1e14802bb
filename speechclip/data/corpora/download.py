"""Files from the places they are published at: mirrors, resume after a cut, checksums, free space, unpacking.

A part of a corpus is there when the paths it leaves are. What no host has any more is named with the place to put it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import os
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from speechclip.common.errors import UserError, writing

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without a byte
_SLACK = 1 << 25  # bytes that an archive may unpack to above twice what is told of it
_MOST_FILES = 10_000_000  # in an archive
_ATTEMPTS = 5  # in a row that brought nothing
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_REFUSED: type[Exception] = getattr(tarfile, "FilterError", tarfile.TarError)  # by the filter of safe members
Log = Callable[[str], None]
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in total or None
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        name: of the file. urls: mirrors, tried in order.
        bytes: its size, about. unpacked: what its content takes on disk beside the file, about.
        leaves: paths, relative to the folder, that are there when this part is.
        checksum: ``md5:...`` or ``sha256:...``; empty where none is published.
        into: folder it is unpacked into; None for a file that is used as it is.
        about: what it is and where to ask for it.
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
    remotes: Sequence[RemoteFile], folder: Path, log: Log = print, pause: float = 2.0, progress: Progress | None = None
) -> None:
    """Download and unpack what is missing in ``folder``; what is there is left alone.

    Args:
        log: is told what happens, a line at a time. progress: receives bytes so far and in total.
        pause: seconds before a second attempt, then twice that, and so on.
    Raises:
        UserError: too little space, or parts that no mirror gave: all of them, with what to place where.
    """
    missing = [remote for remote in remotes if not _is_there(remote, folder)]
    for remote in remotes:
        if remote not in missing:
            log(f"{remote.name}: there")
    if not missing:
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _check_space(missing, folder)
    failed = []
    for remote in missing:
        try:
            archive = _fetch(remote, folder, log, pause, progress)
            if remote.into is not None:
                _unpack(archive, folder / remote.into, log, _SLACK + 2 * remote.unpacked)
                archive.unlink()
            if not _is_there(remote, folder):
                raise UserError(f"{remote.name}: has no {' and '.join(remote.leaves)} in it")
        except UserError as error:
            if "disk full" in str(error):
                raise
            failed.append(f"{error}; place {' and '.join(remote.leaves)} under {folder} yourself ({remote.about})")
    if failed:
        raise UserError(" | ".join(failed))


def _is_there(remote: RemoteFile, folder: Path) -> bool:
    return all((folder / path).exists() for path in remote.leaves)


def _check_space(remotes: Sequence[RemoteFile], folder: Path) -> None:
    """Room for everything unpacked and, one at a time, the archives. Raises UserError."""
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
            f"{folder}: {needed / 1e9:.1f} GB are needed for {', '.join(r.name for r in remotes)}, "
            f"{free / 1e9:.1f} GB are free"
        )


def _fetch(remote: RemoteFile, folder: Path, log: Log, pause: float, progress: Progress | None) -> Path:
    """The file, complete and checked, under its name. Raises UserError with every mirror's reason."""
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    origin = folder / f"{remote.name}.part.url"
    if target.exists() and _matches(target, remote.checksum):
        return target
    reasons = []
    for url in remote.urls:
        # bytes of another mirror go together only where a checksum tells
        if part.exists() and not remote.checksum and (not origin.exists() or origin.read_text() != url):
            part.unlink()
        origin.write_text(url)
        try:
            _download(url, part, log, pause, progress)
        except _Failure as failure:
            reasons.append(f"{url}: {failure}")
            continue
        if not _matches(part, remote.checksum):
            part.unlink()
            reasons.append(f"{url}: its checksum is not {remote.checksum}")
            continue
        part.replace(target)
        origin.unlink()
        return target
    raise UserError(f"{remote.name}: not to be had: {'; '.join(reasons)}")


class _Failure(Exception):
    """A mirror that does not give the file."""


def _download(url: str, part: Path, log: Log, pause: float, progress: Progress | None) -> None:
    """Append what is missing of ``part``, again after every cut that came after some progress."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, before, log, progress)
            return
        except (urllib.error.URLError, HTTPException, OSError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429):
                raise _Failure(f"HTTP status {error.code}") from error
            # a TLS error's number is none of the system's
            number = getattr(error, "errno", None)
            if number in _OF_DISK and not isinstance(error, (urllib.error.URLError, ssl.SSLError)):
                raise OSError(number, os.strerror(number), str(part)) from error
            after = part.stat().st_size if part.exists() else 0
            fruitless = 0 if after > before else fruitless + 1
            if fruitless >= _ATTEMPTS or _hopeless(error):
                raise _Failure(str(getattr(error, "reason", error)) or type(error).__name__) from error
            log(f"{part.stem}: cut after {after / 1e6:.1f} MB ({error}); going on")
            time.sleep(min(60.0, pause * 2**fruitless))


def _hopeless(error: Exception) -> bool:
    """Whether there is no such host, or nobody answers at it: the next mirror is as good as a second attempt."""
    import socket

    reason = getattr(error, "reason", error)
    return isinstance(reason, (socket.gaierror, ConnectionRefusedError))


def _transfer(url: str, part: Path, have: int, log: Log, progress: Progress | None) -> None:
    """One request, from byte ``have`` on where the server can do that. OSError where less comes than was told."""
    request = urllib.request.Request(
        url, headers={"User-Agent": "speechclip"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing behind what there is
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            part.unlink()
            raise ConnectionError("a part that the server does not know") from error
        raise
    with response, writing(part):
        partial = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        length = response.headers.get("Content-Length")
        start = have if partial else 0
        total = start + int(length) if length is not None else None
        log(f"{part.stem}: {start / 1e6:.1f} of {'?' if total is None else f'{total / 1e6:.1f}'} MB, from {url}")
        with part.open("ab" if partial else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                if progress is not None:
                    progress(file.tell(), total)
            size = file.tell()
    if total is not None and size != total:
        raise ConnectionError(f"{size} of {total} bytes")


def _matches(path: Path, checksum: str) -> bool:
    """Whether a file has a checksum; any file has the empty one."""
    if not checksum:
        return True
    kind, _, wanted = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == wanted


def _unpack(archive: Path, folder: Path, log: Log, most: int) -> None:
    """Unpack a zip or tar file of up to ``most`` bytes; nothing of it may land outside ``folder``.

    Raises UserError where it is damaged, or unpacks to more.
    """
    log(f"{archive.name}: unpacking into {folder}")
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
                        raise UserError(f"{archive}: this Python's tarfile has no safe mode: use its latest release")
            _merge(part, folder)
    except _REFUSED as error:
        name = getattr(getattr(error, "tarinfo", None), "name", "?")
        raise UserError(f"{archive.name}: damaged archive ({name} would land or lead outside)") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        with contextlib.suppress(OSError):
            archive.unlink()
        raise UserError(f"{archive.name}: damaged archive ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _tar(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive)
    except tarfile.ReadError as error:  # which lists what every kind of archive says
        raise tarfile.ReadError("neither zip nor tar") from error


class _Sizes:
    """Adds up what an archive unpacks to, before it does. Raises UserError where that is too much."""

    def __init__(self, archive: Path, most: int) -> None:
        self._archive, self._most, self._bytes, self._files = archive, most, 0, 0

    def add(self, item: T, size: int) -> T:
        """``item`` itself, after it is counted."""
        self._bytes, self._files = self._bytes + size, self._files + 1
        if self._bytes > self._most or self._files > _MOST_FILES:
            raise UserError(
                f"{self._archive.name}: would unpack to over {self._most / 1e6:.0f} MB or {_MOST_FILES} files: refused"
            )
        return item


def _unzip(archive: Path, part: Path, most: int) -> None:
    with zipfile.ZipFile(archive) as file:
        root, sizes = part.resolve(), _Sizes(archive, most)
        for info in file.infolist():
            sizes.add(info, info.file_size)
        for name in file.namelist():
            if not (root / name).resolve().is_relative_to(root):
                raise zipfile.BadZipFile(f"{name} would land or lead outside")
        file.extractall(part)


def _merge(source: Path, target: Path) -> None:
    """Move a folder's content into another one, folder by folder."""
    target.mkdir(parents=True, exist_ok=True)
    for item in sorted(source.iterdir()):
        place = target / item.name
        if item.is_dir() and place.is_dir():
            _merge(item, place)
        else:
            os.replace(item, place)
