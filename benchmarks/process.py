"""A measurement in a process of its own, and the memory that it takes there."""

from __future__ import annotations

import multiprocessing
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
GIB = 1 << 30


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


class Peak:
    """The most anonymous memory that this process had within a ``with``, looked at every few ms."""

    bytes = 0

    def __enter__(self) -> Peak:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, anonymous())

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, anonymous())


def in_fresh_process(work: Callable[..., None], *arguments: object) -> Any:
    """What ``work(pipe, *arguments)`` sends through ``pipe``.

    Raises:
        EOFError: it ended without.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()
