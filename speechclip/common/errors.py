"""The errors that a user can fix. Each is one line: ``file: problem. Fix.``"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL_TEXT = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")


class UserError(Exception):
    """A problem with something that the user provided. The message is one line: ``file: problem. Fix.``"""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))


class MissingFileError(UserError):
    """A file of the project's own is missing. Scripts add the stage that writes it.

    Args:
        path: the file.
        problem: replaces "is missing" in the message.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str = "is missing") -> None:
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.path = Path(path)


class Stopped(Exception):
    """The work was stopped on request, and what was computed so far is stored."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_disk_full(error: BaseException) -> bool:
    """Return whether the error means a full disk or quota, also if a library raised a class of its own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_FULL
    return any(text in str(error) for text in _DISK_FULL_TEXT)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name ``path`` in the error if the disk fills up inside the block (``write`` does not know the name).

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise UserError(
                f"{os.fspath(path)}: disk full while writing. Free some space and run the command again."
            ) from error
        raise
