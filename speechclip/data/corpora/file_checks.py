"""Checks of the files of a corpus, in several processes while the corpus is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.data.audio import check_audio, num_samples
from speechclip.data.images import check_image
from speechclip.data.kaldi import is_command, value_problem

T = TypeVar("T")

_CHUNK = 128  # files a worker process takes at a time


class FileChecks:
    """Functions of paths, computed by other processes while the caller adds further paths.

    The processes start with the first full batch, when the memory of this process is still small. Without a full batch,
    or with ``nj`` 1, this process computes all values.
    """

    def __init__(self, nj: int) -> None:
        self._pool = None if nj == 1 else ProcessPoolExecutor(nj)
        self._batches: dict[Callable[[str], Any], list[str]] = {}
        self._values: dict[Callable[[str], Any], list[list[Any] | Future[list[Any]]]] = {}

    def __enter__(self) -> FileChecks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error is not None)

    def add(self, function: Callable[[str], Any], path: str) -> None:
        """Ask for the value of a function for a path."""
        batch = self._batches.setdefault(function, [])
        batch.append(path)
        if len(batch) == _CHUNK:
            values = self._values.setdefault(function, [])
            pool = self._pool
            values.append(_apply(function, batch) if pool is None else pool.submit(_apply, function, batch))
            del self._batches[function]

    def results(self, function: Callable[[str], T]) -> Iterator[T]:
        """Yield the value for every path, in the order of :meth:`add`. No path may follow."""
        values = self._values.pop(function, [])
        values.append(_apply(function, self._batches.pop(function, [])))
        for place, value in enumerate(values):
            yield from value if isinstance(value, list) else value.result()
            values[place] = []  # frees the memory


def _apply(function: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    return [function(path) for path in paths]


def image_problem(path: str) -> str | None:
    """Return the reason why an image cannot be used, or None."""
    try:
        check_image(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return _path_problem(path)


def decoded_seconds(path: str) -> float | str:
    """Return the length of a recording, or the reason why it cannot be decoded."""
    return _seconds(path, check_audio)


def header_seconds(path: str) -> float | str:
    """Return the length of a recording according to its header, or the reason why it cannot be used."""
    return _seconds(path, num_samples)


def _seconds(path: str, count: Callable[[str], int]) -> float | str:
    try:
        seconds = count(path) / SAMPLE_RATE
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return _path_problem(path) or seconds


def _path_problem(path: str) -> str | None:
    """Return the reason why ``wav.scp`` and ``img.scp`` cannot hold a path, or None."""
    if is_command(path):
        return "its path reads as a command"
    if problem := value_problem(path):
        return f"its path cannot be written to a table ({problem})"
    return None if is_utf8(path) else "its path is not valid Unicode"


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8; JSON can hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
