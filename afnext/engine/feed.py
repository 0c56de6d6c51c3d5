"""Prompts whose end is not known yet: threads read it while the model is at what came before."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from afnext.audio.windows import AudioWindow

from .prompt_audio import PromptAudio, window_key
from .request import Request, State

More = Iterator[tuple[Sequence[int], Sequence[AudioWindow]]]

# The oldest prompt is read first, so that it is not held up by the others; one that waits for a disk or a
# network does not hold up all of them.
MOST_READERS = 8


class Feed:
    """What comes behind the beginning of a prompt.

    Args:
        more: gives it, a stretch of ids and the windows of its placeholders at a time.
        ids: what is known of the prompt; grows.
        audio: of ``ids``; grows with them.

    Attributes:
        requests: that ask this prompt.
        complete: all of it is in ``ids``.
        seconds: that reading it took so far.
    """

    def __init__(self, more: More, ids: list[int], audio: PromptAudio) -> None:
        self.ids, self.audio = ids, audio
        self.requests: list[Request] = []
        self.complete = False
        self.seconds = 0.0
        self._more: More | None = more
        self._read: deque[tuple[Sequence[int], Sequence[AudioWindow], list[bytes]]] = deque()
        self._error: BaseException | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for what is read."""
        return any(not (r.cancelled or r.dropped or r.state is State.DONE) for r in self.requests)

    def read(self, lock: threading.RLock, tell: Callable[[], object]) -> None:
        """Read to the end, or until nobody wants it; takes the lock to hand a stretch over, then tells."""
        more, error = self._more, None
        assert more is not None
        try:
            try:
                while self._next(more, lock):
                    tell()
            finally:
                if callable(close := getattr(more, "close", None)):
                    close()
        except BaseException as caught:  # of whatever kind: it is the requests that fail
            error = caught
        with lock:
            self._error, self._more = error, None
        tell()

    def _next(self, more: More, lock: threading.RLock) -> bool:
        if not threading.main_thread().is_alive():
            raise RuntimeError("the program ends")
        if not self.wanted:
            return False
        clock = perf_counter()
        stretch = next(more, None)
        keys = [] if stretch is None else [window_key(w) for w in stretch[1]]
        with lock:
            self.seconds += perf_counter() - clock
            if stretch is not None:
                self._read.append((*stretch, keys))
        return stretch is not None

    def take(self) -> bool:
        """Add what was read to ``ids`` and ``audio``; the lock is held. False where there is nothing new.

        Raises:
            ValueError: placeholders that do not match their windows.
            BaseException: what reading failed with.
        """
        if self._error is not None:
            raise self._error
        if self._more is not None and not self._read:
            return False
        while self._read:
            ids, windows, keys = self._read.popleft()
            self.audio.extend(ids, windows, keys)
            self.ids += ids
        self.complete = self._more is None
        return True


class Feeds:
    """The feeds of an engine and the threads that read them, in the order in which they came.

    Args:
        lock: of the engine; held while methods are called.
        tell: is called when there is more of a prompt.

    Attributes:
        active: those that more may come of.
    """

    def __init__(self, lock: threading.RLock, tell: Callable[[], object]) -> None:
        self._lock, self._tell = lock, tell
        self._most = min(MOST_READERS, max(2, (os.cpu_count() or 1) // 2))
        self._readers = 0
        self._waiting: deque[Feed] = deque()
        self.active: list[Feed] = []

    def add(self, feed: Feed) -> None:
        """Have it read; its requests are there."""
        if self._readers < self._most:
            # No daemon: a decoder must not be stopped within a call. It looks whether the program ends.
            threading.Thread(target=self._serve, name="afnext-reader").start()
            self._readers += 1
        self.active.append(feed)
        self._waiting.append(feed)

    def prune(self) -> None:
        """Let go of those that nobody waits for: their audio is large."""
        self.active = [f for f in self.active if f.wanted]

    def forked(self) -> None:
        """In a child, where nobody reads on."""
        self.active.clear()
        self._waiting.clear()
        self._readers = 0

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._readers -= 1
                    return
                feed = self._waiting.popleft()
            feed.read(self._lock, self._tell)
            with self._lock:
                self.prune()
            del feed  # this thread may wait long for the next one
