"""Command lines: the option parser, logging, and errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

from speechclip.common.constants import EXIT_RESUMABLE
from speechclip.common.errors import Stopped, UserError, is_disk_full

P = ParamSpec("P")
R = TypeVar("R")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the default of every option that has one. Empty defaults and flags have none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", False, []) else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser without abbreviations. A mistake is one line that lists the known options."""

    def __init__(self, *, description: str | None = None, prog: str | None = None) -> None:
        """Create a parser whose ``--help`` shows defaults."""
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        """Print ``error: <one line>`` and exit with status 2."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if message.startswith("unrecognized arguments"):
            message = f"{message.replace('unrecognized arguments', 'unknown option')} (known: {' '.join(known)})"
        print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
        raise SystemExit(2)


def parse_with_overrides(
    parser: ArgumentParser, section: str, keys: Sequence[str], argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parse options next to configuration overrides of one section.

    Args:
        parser: the script's own options.
        section: the section of the configuration that may be overridden, such as "eval".
        keys: the dotted keys of that section, for ``--help``.
        argv: the command line; None for that of this process.

    Returns:
        The options, and the words ``--<section>.KEY VALUE``. Any other unknown option exits with status 2.
    """
    parser.epilog = f"Settings that override those of the checkpoint: --{', --'.join(keys)}"
    options, words = parser.parse_known_args(argv)
    allowed = re.compile(rf"--{section}([.=]|$)")
    unknown = [word for word in words if word.startswith("--") and not allowed.match(word)]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options, words


class _Plain(logging.Formatter):
    """The message alone; a warning or an error is marked as one."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def configure_logging() -> None:
    """Print what the library logs: information to standard output, warnings and errors to standard error."""
    logger = logging.getLogger("speechclip")
    if logger.handlers:
        return
    for stream in ("stdout", "stderr"):
        handler = _StreamHandler(stream)
        handler.setFormatter(_Plain("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    root = logging.getLogger()
    if not root.handlers:  # otherwise a library that logs to the root logger configures it, and our lines appear twice
        others = logging.StreamHandler()
        others.setFormatter(_Plain("%(message)s"))
        others.setLevel(logging.WARNING)
        others.addFilter(lambda record: not record.name.startswith("speechclip"))
        root.addHandler(others)


class _StreamHandler(logging.StreamHandler):
    """Writes to the present ``sys.stdout`` or ``sys.stderr``, also if it was replaced after the start."""

    def __init__(self, name: str) -> None:
        logging.Handler.__init__(self)
        self._stream_name = name

    def filter(self, record: logging.LogRecord) -> bool:
        """Send warnings and errors to standard error, everything else to standard output."""
        return (record.levelno >= logging.WARNING) == (self._stream_name == "stderr")

    @property
    def stream(self) -> Any:
        return getattr(sys, self._stream_name)


def exit_on_user_error(main: Callable[P, R], hint: Callable[[UserError], str] = lambda error: "") -> Callable[P, R]:
    """Wrap the ``main`` of a script, so that a mistake of the user is one line and not a traceback.

    Logging is configured first. A :class:`UserError`, a full disk, and any other system error that names a file are
    printed as ``error: <one line>``, and the exit status is 1. Work that was stopped on request exits with 75, an
    interrupt with 130. If the reader closed the pipe (``| head``), the script exits silently with 141. Any other
    exception is a bug and keeps its traceback.

    Args:
        main: the function.
        hint: returns what to add to the message of an error.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        configure_logging()
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except UserError as error:
            message = f"{error}{hint(error)}"
        except Stopped as stopped:
            print(stopped, flush=True)
            raise SystemExit(EXIT_RESUMABLE) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except BrokenPipeError:
            # The interpreter flushes stdout once more when it exits: give it somewhere to write.
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
    """Return one line for a full disk or for a system error about a named file, else None."""
    filename = getattr(error, "filename", None)
    if is_disk_full(error):
        return f"{filename or 'a file'}: disk full while writing. Free some space and run the command again."
    if isinstance(error, OSError) and filename is not None:
        return f"{filename}: {error.strerror or error}"
    return None
