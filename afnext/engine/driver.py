"""Who makes an engine's steps: a thread of its own, for as long as somebody waits for a token."""

from __future__ import annotations

import asyncio
import atexit
import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .engine import Engine
    from .handle import Handle

# Handing a token over and being asked for the next one takes 25 to 90 µs, which small models notice (nano
# says a token in 0.3 ms): what is said within this time of asking is handed over at once, and costs 1 %.
STREAM = 0.01
WHOLE = math.inf  # patience of who wants whole answers
HOUR = 3600.0  # longest sleep: of 300 years a queue knows nothing


class _Waiter:
    """Somebody who waits: for what, how patiently, and how to wake him, once."""

    __slots__ = ("handles", "patience", "since", "wake")

    def __init__(
        self, handles: Sequence[Handle], patience: float, wake: Callable[[], object]
    ) -> None:
        self.handles, self.patience, self.wake = handles, patience, wake
        self.since = perf_counter()

    def due(self, now: float, busy: bool) -> bool:
        """Whether there is something for him. ``busy``: the next step takes longer than a token does."""
        if self.patience == WHOLE:
            return any(h.finished for h in self.handles)
        if busy or now - self.since >= self.patience:
            return any(h.ready for h in self.handles)
        return any(h.finished or h.begins for h in self.handles)


class Driver:
    """Makes the steps of an engine while anybody waits, and wakes who has what he waits for.

    All steps are made by one daemon thread: from however many threads or tasks is asked, no second set of
    OpenMP threads or of a device's workspaces comes to be, nobody's interrupt stops a step half way, and what
    a caller's thread has set for itself (autocast, gradients, a default device) is not in force. Only its
    ``torch.set_num_threads`` is, as of the last request.

    The thread starts when it is needed first. It holds the engine while it works and not while it sleeps, and
    ends when the engine is gone. In a forked child the parent's requests fail, and another one starts.

    Args:
        engine: whose steps.

    Attributes:
        threads: that torch's own operations are to use.
        idle: somebody waits, and there is nothing to do until more of a prompt is there.
    """

    def __init__(self, engine: Engine) -> None:
        self._bell: SimpleQueue[None] = (
            SimpleQueue()
        )  # rung by finalizers too: it can be re-entered
        self._engine = weakref.ref(engine, lambda _: self._bell.put(None))
        self._lock = engine.lock
        self._waiters: list[_Waiter] = []
        self._thread: threading.Thread | None = None
        self._ends = False
        self.threads, self._threads_set = torch.get_num_threads(), 0
        self.idle = False
        _drivers.add(self)

    def wait(self, handles: Sequence[Handle], patience: float) -> None:
        """Until one of ``handles`` has something new."""
        asleep = threading.Lock()
        asleep.acquire()
        waiter = _Waiter(handles, patience, asleep.release)
        try:
            if self._enter(waiter):
                asleep.acquire()
        finally:
            self._leave(waiter)

    async def wait_async(self, handles: Sequence[Handle], patience: float) -> None:
        """As ``wait``; the loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def settle() -> None:
            if not future.done():  # cancelled
                future.set_result(None)

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle)

        waiter = _Waiter(handles, patience, wake)
        try:
            if self._enter(waiter):
                await future
        finally:
            self._leave(waiter)

    def tell(self) -> None:
        """Something changed; may be called at any moment."""
        if self._waiters:
            self._bell.put(None)

    def wake(self) -> None:
        """As ``tell``, also where nobody waits."""
        if self._thread is not None:
            self._bell.put(None)

    def end(self) -> None:
        """No more steps; waits for the one that is being made."""
        self._ends = True
        self._bell.put(None)
        if (thread := self._thread) is not None:
            thread.join()

    def forked(self) -> None:
        """In a child, whose only thread this is; the lock is held."""
        self._bell, self._thread, self.idle = SimpleQueue(), None, False
        self._threads_set = 0
        self._waiters.clear()

    def _enter(self, waiter: _Waiter) -> bool:
        """Whether he has to wait."""
        with self._lock:
            engine = self._engine()
            assert engine is not None  # a handle holds it
            engine.reap()
            if waiter.due(waiter.since, busy=True):
                return False
            if self._ends:
                raise RuntimeError("the program ends: no more steps are made")
            self._waiters.append(waiter)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._serve, name="afnext-engine", daemon=True
                )
                self._thread.start()
            self._bell.put(None)
        return True

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:  # nobody woke him: he was interrupted
            with self._lock, suppress(ValueError):
                self._waiters.remove(waiter)

    def _serve(self) -> None:
        pause = 0.0
        while not self._ends:
            with suppress(Empty):
                self._bell.get(timeout=None if pause == math.inf else min(pause, HOUR))
                while True:
                    self._bell.get_nowait()
            engine = self._engine()
            if engine is None:
                return
            self.idle = False
            try:
                pause = self._work(engine)
            except BaseException as error:  # a bug, but nobody waits for ever
                engine.fail_all(error)
                pause = 0.0
            del engine

    def _work(self, engine: Engine) -> float:
        """Steps, while somebody waits and there is something to do; for how many seconds there is not."""
        if engine.runner.device.type == "cuda":
            torch.cuda.set_device(engine.runner.device)
        pause = 0.0
        while not self._ends:
            with self._lock:
                engine.reap()
                self._deliver(pause > 0 or engine.scheduler.reading)
                if not self._waiters:
                    return math.inf
                self.idle = pause > 0
            if pause > 0:
                return pause
            if self._threads_set != self.threads:
                self._threads_set = self.threads
                torch.set_num_threads(self.threads)
            pause = engine.step()
        return pause

    def _deliver(self, busy: bool) -> None:
        """Wake those who have what they wait for."""
        now = perf_counter()
        due = [w for w in self._waiters if w.due(now, busy)]
        for waiter in due:
            self._waiters.remove(waiter)
            waiter.wake()


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()
_held: list[Engine] = []


@atexit.register
def _end() -> None:
    """Daemons are stopped wherever they are when the interpreter ends; within a kernel that is a crash."""
    for driver in list(_drivers):
        driver.end()


def _before_fork() -> None:
    """What a lock guards is whole in the child."""
    global _held
    engines = [e for d in list(_drivers) if (e := d._engine()) is not None]
    engines.sort(key=id)
    for engine in engines:
        engine.lock.acquire()
    _held = engines


def _after_fork(child: bool) -> None:
    global _held
    engines, _held = _held, []
    for engine in engines:
        if child:
            engine.forked()
        engine.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(child=False),
        after_in_child=lambda: _after_fork(child=True),
    )
