"""A run that is told to end does so after its step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def termination() -> Iterator[threading.Event]:
    """An event that SIGTERM (as schedulers and ``torchrun`` send it) sets, which does nothing else meanwhile,
    and so does the first Ctrl-C (SIGINT); the second one interrupts. Outside the main thread, where no
    signal arrives, nothing sets it.
    """
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and told.is_set():
            raise KeyboardInterrupt
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
