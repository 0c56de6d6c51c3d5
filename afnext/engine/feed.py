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

# The oldest prompt is read first, so that it is not held up by the others.
MOST_READERS = 8
# Seconds for a stretch, after which its source is taken to wait for a disk or a network, and keeps no other
# from being read.
STALLED = 1.0


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
        self._given = len(ids)
        self._since: float | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for what is read."""
        return any(not (r.cancelled or r.dropped or r.state is State.DONE) for r in self.requests)

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to read."""
        return self._more is None

    def hungry(self, ahead: int) -> bool:
        """Whether more is to be read: less than ``ahead`` tokens are not computed yet, or it has to be known
        how it goes on before it can begin.
        """
        running = [r.computed for r in self.requests if r.state is State.RUNNING]
        if running:
            return self._given - max(running) < ahead
        starving = any(r.starving for r in self.requests if r.state is State.WAITING)
        return starving or self._given < ahead

    def stalls(self, now: float) -> bool:
        """Whether a thread waits long for the next stretch."""
        return self._since is not None and now - self._since > STALLED

    def read(self, lock: threading.RLock, tell: Callable[[], object], ahead: int) -> None:
        """Read while it is ``hungry``, or to the end, or until nobody wants it.

        Takes the lock to hand a stretch over, then tells.
        """
        more, error = self._more, None
        assert more is not None
        try:
            while self._next(more, lock):
                tell()
                with lock:
                    if not self.hungry(ahead) and self.wanted:
                        return
        except BaseException as caught:  # of whatever kind: it is the requests that fail
            error = caught
        try:
            if callable(close := getattr(more, "close", None)):
                close()
        except BaseException as caught:
            error = error or caught
        with lock:
            self._error, self._more = error, None
        tell()

    def _next(self, more: More, lock: threading.RLock) -> bool:
        if not threading.main_thread().is_alive():
            raise RuntimeError("the program ends")
        if not self.wanted:
            return False
        self._since = clock = perf_counter()
        try:
            stretch = next(more, None)
        finally:
            self._since = None
        keys = [] if stretch is None else [window_key(w) for w in stretch[1]]
        with lock:
            self.seconds += perf_counter() - clock
            if stretch is not None:
                self._read.append((*stretch, keys))
                self._given += len(stretch[0])
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

    A feed is read some way ahead of the model and no further, since audio is large.

    Args:
        lock: of the engine; held while methods are called.
        tell: is called when there is more of a prompt.
        ahead: tokens that are read before they are needed; at least as many as a step takes.

    Attributes:
        active: those that more may come of.
        crowded: some have to wait for a thread.
    """

    def __init__(self, lock: threading.RLock, tell: Callable[[], object], ahead: int) -> None:
        self._lock, self._tell, self._ahead = lock, tell, ahead
        self._most = min(MOST_READERS, max(2, (os.cpu_count() or 1) // 2))
        self._reading: list[Feed] = []
        self.active: list[Feed] = []
        self.crowded = False

    def add(self, feed: Feed) -> None:
        """Have it read; its requests are there."""
        self.active.append(feed)
        self.tend()

    def tend(self) -> None:
        """Have threads read what is to be read now."""
        now = perf_counter()
        free = self._most - sum(not f.stalls(now) for f in self._reading)
        self.crowded = False
        for feed in self.active:
            if feed.ended or feed in self._reading or not feed.hungry(self._ahead):
                continue
            if free <= 0:
                self.crowded = True
                return
            free -= 1
            self._start(feed)

    def prune(self) -> None:
        """Let go of those that nobody waits for: their audio is large."""
        for feed in self.active:
            if not (feed.wanted or feed.ended or feed in self._reading):
                self._start(feed)  # which closes it
        self.active = [f for f in self.active if f.wanted]

    def forked(self) -> None:
        """In a child, where nobody reads on."""
        self.active.clear()
        self._reading.clear()

    def _start(self, feed: Feed) -> None:
        # No daemon: a decoder must not be stopped within a call. It looks whether the program ends.
        threading.Thread(target=self._serve, args=[feed], name="afnext-reader").start()
        self._reading.append(feed)

    def _serve(self, feed: Feed) -> None:
        feed.read(self._lock, self._tell, self._ahead)
        with self._lock:
            self._reading.remove(feed)
            self.prune()
            self.tend()
