"""The error a user can mend, and how a script reports it: one line, no traceback."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from speechclip.constants import STOPPED

P = ParamSpec("P")
R = TypeVar("R")

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL_TEXT = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")


class UserError(Exception):
    """Something the user gave cannot be used. The message is one line: ``<file>: <reason>``."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))


class Stopped(Exception):
    """A stage was asked to stop, and what it has computed is stored."""


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` is a full disk or quota, also as reported by libraries that raise their own classes."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_FULL
    return any(text in str(error) for text in _DISK_FULL_TEXT)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name ``path`` in the error when the disk fills up inside the block (``write`` itself does not know the name)."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise UserError(f"disk full while writing {os.fspath(path)}") from error
        raise


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap a script's ``main``: a :class:`UserError` is printed as ``error: <one line>`` and ends with status 1.

    The same for a full disk and for any other system error that names a file. What was asked to stop, and has, ends
    with 75, an interrupt with 130; a reader that closed the pipe (``| head``) ends quietly with 141. Anything else is a
    defect and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except UserError as error:
            message = str(error)
        except Stopped as stopped:
            print(stopped, flush=True)
            raise SystemExit(STOPPED) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except BrokenPipeError:
            # The interpreter flushes stdout once more on its way out; give it somewhere to go.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except Exception as error:
            known = _describe_system_error(error)
            if known is None:
                raise
            message = known
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1)

    return wrapped


def _describe_system_error(error: Exception) -> str | None:
    """One line for a full disk or for an operating-system error about a named file, else None."""
    filename = getattr(error, "filename", None)
    if is_disk_full(error):
        return f"disk full while writing {filename or 'a file'}"
    if isinstance(error, OSError) and filename is not None:
        return f"{filename}: {error.strerror or error}"
    return None
