"""Atomic writes of files and folders, checksums, locks, and JSON files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from speechclip.common.errors import MissingFileError, UserError, writing

SUMS = "SHA256SUMS"  # in the format of sha256sum, so `sha256sum -c` reads it
LOCK = ".lock"
_BLOCK = 1 << 20  # bytes


def sync(path: Path) -> None:
    """Write a file, or the entries of a folder, to the disk.

    Without it, a name can survive a loss of power while its content does not.

    Args:
        path: the file or folder. A folder whose file system cannot sync folders is ignored.

    Raises:
        OSError: a file cannot be written to the disk.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing.

    Raises:
        UserError: the path or one of its parents is a file, or the disk is full.
    """
    check_folder(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def check_folder(path: Path) -> None:
    """Check that a folder exists or can be created.

    Raises:
        UserError: the path or one of its parents is a file.
    """
    for item in (path, *path.parents):
        if item.exists():
            if not item.is_dir():
                raise UserError(f"{item}: is not a directory. Give the path of a folder to write.")
            return


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``target`` when the block ends, so that ``target`` is never half written.

    The temporary file has the suffix of ``target``. Missing parent folders are created.

    Args:
        target: the file to write.

    Raises:
        UserError: the target is a folder, or a device such as ``/dev/null``, which a rename would replace by a file;
            or the disk is full. The temporary file is removed.
    """
    if target.exists() and not target.is_file():
        raise UserError(f"{target}: is not a regular file. Give the path of a file to write.")
    part = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    make_folder(target.parent)
    with writing(target):
        try:
            yield part
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def replace_file(target: Path, data: bytes) -> None:
    """Write a file atomically: see :func:`replacing`."""
    with replacing(target) as part:
        part.write_bytes(data)


def replace_folder(target: Path, write: Callable[[Path], None], *, keep: bool = False) -> None:
    """Write a folder with checksums of its files, so that ``target`` is always either the old or the new folder.

    A kill between the two renames leaves the old folder as ``<target>.old``, and readers look for it. The new folder is
    synced to the disk before it gets its name.

    Args:
        target: the folder.
        write: called with a temporary folder, which it fills.
        keep: keep the old folder as ``<target>.old`` in any case.

    Raises:
        UserError: the target is a file, or the disk is full. What was there stays.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is not a directory. Give the path of a folder to write.")
    make_folder(target.parent)
    part, old = target.with_name(target.name + ".part"), previous(target)
    shutil.rmtree(part, ignore_errors=True)
    with writing(target):
        part.mkdir(parents=True)
    try:
        with writing(target):
            write(part)
            _write_sums(part)
            for path in sorted(part.rglob("*"), reverse=True):  # a folder after its content
                sync(path)
            sync(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    part.rename(target)
    sync(target.parent)
    if not keep:
        shutil.rmtree(old, ignore_errors=True)


def check_replaceable(target: Path, written_before: Callable[[Path], bool]) -> None:
    """Refuse to replace a folder that holds something else, such as trained weights.

    Args:
        target: the folder that a command is going to replace.
        written_before: returns whether the folder is an earlier result of the same command.

    Raises:
        UserError: the target is a file, is below a file, or is a folder that is neither empty nor an earlier result.
    """
    check_folder(target.parent)
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() and not (target.is_dir() and written_before(target)):
        raise UserError(f"{target}: exists and is not an earlier result of this command. Give a new folder.")


def previous(target: Path) -> Path:
    """Return the path of the folder that ``target`` replaced."""
    return target.with_name(target.name + ".old")


def damaged_file(folder: Path, *, all_files: bool) -> str:
    """Return the name of the first file whose checksum is wrong; "" if all are right or the folder has no checksums.

    Args:
        folder: the folder.
        all_files: also check files that a user may edit, such as settings.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        return SUMS
    for line in lines:
        digest, gap, name = line.partition("  ")
        if not gap or len(digest) != 64 or name != os.path.basename(name):
            return SUMS
        if all_files or name.endswith((".safetensors", ".tsv")):
            path = folder / name
            if not path.is_file() or file_sha256(path) != digest:
                return name
    return ""


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for this process. The kernel releases the lock when the process ends.

    Args:
        folder: the folder; created if it is missing.

    Raises:
        UserError: another process has locked it.
    """
    make_folder(folder)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"{folder}: another run is at work in it (process {file.read().strip()}). Wait for it, or stop it."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def only_one_writer(target: Path) -> Iterator[None]:
    """Lock a file or folder that is replaced as a whole, with a hidden file next to it.

    Args:
        target: the file or folder. Its parent is created if it is missing.

    Raises:
        UserError: another process has locked it.
    """
    place = target.with_name(f".{target.name}{LOCK}")
    make_folder(target.parent)
    with place.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != os.stat(place).st_ino:
                raise OSError("the file was replaced")
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"{target}: another run is at work in it (process {file.read().strip()}). Wait for it, or stop it."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def lines_fingerprint(lines: Iterable[str]) -> str:
    """Return 16 hexadecimal digits that identify a list of lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:16]


def _write_sums(folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    text = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
    (folder / SUMS).write_text(text, encoding="ascii")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: the file is missing, cannot be read, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(path) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8 or not JSON
        raise UserError(f"{path}: not valid JSON ({error}). Correct or delete the file.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is needed, this is a {type(content).__name__}. Correct the file.")
    return content


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write JSON so that ``path`` is always either the old or the new file.

    Args:
        path: the file.
        content: what is written.
        compact: write one line. For millions of entries, it takes a fraction of the time and memory.
    """
    replace_file(path, (json.dumps(content, indent=None if compact else 2) + "\n").encode())


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a model on the Hugging Face hub: ``owner/name``, also after ``hf-hub:``."""
    return re.fullmatch(r"(hf-hub:)?[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def looks_local(path: str) -> bool:
    """Return whether a name can only be a file or folder of this machine, and not an id of the hub."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1
