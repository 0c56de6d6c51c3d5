"""Several pieces of work at once, results as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item, Event], Result], items: Sequence[Item], threads: int
) -> Generator[tuple[Item, Result | BaseException]]:
    """Call ``work(item, stop)`` for every item in so many threads; yield each item with its result.

    Results come in the order in which they are ready, an exception in the place of a result. Closing
    the iterator sets ``stop``, which ``work`` may look at, and waits for what is under way; items that
    nobody has begun are left. The threads share nothing but two queues.
    """
    todo: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[tuple[Item, Result | BaseException]] = SimpleQueue()
    stop = Event()
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
