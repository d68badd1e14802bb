"""Work on all CPUs: the order of the results, the bound, and exceptions."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from speechclip.common.parallel import map_ahead


def test_map_ahead_keeps_the_order() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.05 if item == 0 else 0)
        return 10 * item

    assert list(map_ahead(slow_first, range(20), ahead=4)) == [10 * item for item in range(20)]
    assert list(map_ahead(slow_first, [], ahead=4)) == []


def test_map_ahead_takes_a_bounded_number_of_items() -> None:
    taken = itertools.count()
    results = map_ahead(lambda item: item, taken, ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert next(taken) == 5 + 2  # two more were taken for the two results that followed the first
    results.close()


def test_map_ahead_works_while_the_consumer_works() -> None:
    done = threading.Event()
    results = map_ahead(lambda item: done.set() if item == 3 else None, range(4), ahead=4)
    next(results)
    assert done.wait(10)  # item 3 is computed although only the first result was consumed


def test_map_ahead_raises_the_error_of_an_item() -> None:
    results = map_ahead(lambda item: 1 // item, [1, 0, 1], ahead=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
