"""Several at once: every item once, as they are ready; closing stops what is under way."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from threading import Event

import pytest

from afnext.bulk.pool import Stop, in_threads


@pytest.mark.parametrize("threads", [1, 3, 100])
def test_every_item_once(threads: int) -> None:
    pairs = list(in_threads(lambda n, _: n * n, range(50), threads))
    assert sorted(pairs) == [(n, n * n) for n in range(50)]
    assert threads > 1 or pairs == sorted(pairs)


def test_results_come_as_they_are_ready() -> None:
    second = Event()

    def work(item: int, _: Event) -> None:
        if item == 0:
            assert second.wait(60)  # until another thread has done the item behind it
        else:
            second.set()

    assert [item for item, _ in in_threads(work, [0, 1], 2)] == [1, 0]


def test_an_exception_stands_for_its_item_alone() -> None:
    def work(item: int, _: Event) -> float:
        return 1 / item

    results = dict(in_threads(work, [1, 0, 2], 1))
    assert isinstance(results.pop(0), ZeroDivisionError)
    assert results == {1: 1.0, 2: 0.5}


def test_closing_tells_those_at_work_and_begins_nothing() -> None:
    begun: list[int] = []

    def work(item: int, stop: Event) -> int:
        begun.append(item)
        if item:
            assert stop.wait(60)
        return item

    with closing(in_threads(work, range(100), 2)) as pairs:
        assert next(pairs)[0] == 0
    assert len(begun) <= 3
    deadline = time.monotonic() + 60
    while any(t.name.startswith("afnext-bulk") for t in threading.enumerate()):
        assert time.monotonic() < deadline


def test_closing_calls_off_what_waits_for_something_else() -> None:
    """A prompt that is read looks at nothing."""
    waiting, called_off = Event(), Event()

    def work(item: int, stop: Stop) -> int:
        if item:
            with stop.cancelling(called_off.set):
                waiting.set()
                assert called_off.wait(60)
        return item

    with closing(in_threads(work, range(9), 2)) as pairs:
        assert next(pairs)[0] == 0
        assert waiting.wait(60)
        assert not called_off.is_set()
    late = Stop()
    late.set()
    called_off.clear()
    with late.cancelling(called_off.set):
        assert called_off.is_set()
