"""Several pieces of work at once, results as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stop(Event):
    """An event: once it is set nobody waits for results any more, and what is under way is called off."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = Lock()
        self._under_way: dict[object, Callable[[], None]] = {}

    @contextmanager
    def cancelling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Within it, ``cancel`` is called as soon as this is set, by another thread."""
        key = object()
        with self._lock:
            self._under_way[key] = cancel
        try:
            if self.is_set():
                cancel()
            yield
        finally:
            with self._lock:
                del self._under_way[key]

    def set(self) -> None:
        super().set()
        with self._lock:
            cancels = list(self._under_way.values())
        for cancel in cancels:
            cancel()


def in_threads(
    work: Callable[[Item, Stop], Result], items: Sequence[Item], threads: int
) -> Generator[tuple[Item, Result | BaseException]]:
    """Call ``work(item, stop)`` for every item in so many threads; yield each item with its result.

    Results come in the order in which they are ready, an exception in the place of a result. Closing
    the iterator sets ``stop``, a ``Stop`` that ``work`` may look at or be called off by, and waits for what
    is under way; items that nobody has begun are left. The threads share nothing else but two queues.
    """
    todo: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[tuple[Item, Result | BaseException]] = SimpleQueue()
    stop = Stop()
    for item in items:
        todo.put(item)

    def serve() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except Empty:
                return
            try:
                done.put((item, work(item, stop)))
            except BaseException as error:
                done.put((item, error))

    # Daemons: a second Ctrl-C while the first one waits for them ends the program.
    pool = [
        Thread(target=serve, daemon=True, name=f"afnext-bulk-{n}")
        for n in range(min(threads, len(items)))
    ]
    for thread in pool:
        thread.start()
    try:
        for _ in items:
            yield done.get()
    finally:
        stop.set()
        for thread in pool:
            thread.join()
