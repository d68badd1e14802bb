"""Work on all CPUs, a bounded number of items in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from speechclip.common.devices import cpu_count

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Apply a function to items on all CPUs and yield the results in order.

    Python threads run it, so the function should release the GIL, as image decoders do. The results that are not yet
    consumed are the only ones in memory.

    Args:
        function: takes one item. The consumer gets its exceptions.
        items: the items, which may be an endless iterator.
        ahead: the number of items that are submitted before the first result is consumed, at least 1.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(cpu_count())
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
