"""Links and computing made slower, with a record of what was waited for: how much of communication computing
hides, on a machine that has neither the links nor as many cores as ranks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from .link import Link, Work


class Message(NamedTuple):
    """One message (or exchange) as its receiver saw it; times in seconds of ``time.perf_counter``.

    Attributes:
        kind: ``"heads"`` or ``"ring"``.
        bytes: received, from others.
        begun: when it was asked for.
        left, due: from when to when its wire carried it, one after another.
        wanted: when it was waited for.
        there: when waiting ended.
    """

    kind: str
    bytes: int
    begun: float
    left: float
    due: float
    wanted: float
    there: float

    @property
    def exposed(self) -> float:
        """Seconds in which nothing else was done."""
        return self.there - self.wanted


class Kernel(NamedTuple):
    """One call of attention's kernels by a rank; times as a message's."""

    rank: int
    backward: bool
    begun: float
    ended: float


class Delayed:
    """Another link, each of whose wires carries so many bytes a second, one message after another.

    Args:
        link: that carries them in truth.
        bytes_per_second: of the wire between Ulysses ranks, and of that round the ring.
        latency: seconds that a message takes at least.

    Attributes:
        messages: those waited for, in that order.
    """

    def __init__(
        self, link: Link, bytes_per_second: tuple[float, float], latency: float = 0.0
    ) -> None:
        self.link, self.latency = link, latency
        self.rates = dict(zip(("heads", "ring"), bytes_per_second, strict=True))
        self.ulysses, self.ring, self.rank = link.ulysses, link.ring, link.rank
        self.messages: list[Message] = []
        self._free = dict.fromkeys(self.rates, 0.0)

    @property
    def exposed(self) -> float:
        """Seconds waited for messages."""
        return sum(message.exposed for message in self.messages)

    def all_to_all(
        self, received: Tensor, sent: Tensor, received_rows: Sequence[int], sent_rows: Sequence[int]
    ) -> Work:
        own = received_rows[self.rank % self.ulysses]
        size = (len(received) - own) * received.shape[-1] * received.element_size()
        work = self.link.all_to_all(received, sent, received_rows, sent_rows)
        return self._late(work, "heads", size)

    def shift(self, received: Sequence[Tensor], sent: Sequence[Tensor]) -> Work:
        size = sum(x.numel() * x.element_size() for x in received)
        return self._late(self.link.shift(received, sent), "ring", size)

    def _late(self, work: Work, kind: str, size: int) -> Work:
        now = time.perf_counter()
        left = max(now, self._free[kind])
        self._free[kind] = due = left + self.latency + size / self.rates[kind]
        return _Late(self, work, kind, size, now, left, due)


class _Late:
    def __init__(
        self, link: Delayed, work: Work, kind: str, size: int, begun: float, left: float, due: float
    ) -> None:
        self.link, self.work, self.told = link, work, (kind, size, begun, left, due)
        self.due, self.done = due, False

    def wait(self) -> None:
        if self.done:
            return
        wanted = time.perf_counter()
        self.work.wait()
        time.sleep(max(0.0, self.due - time.perf_counter()))
        self.link.messages.append(Message(*self.told, wanted, time.perf_counter()))
        self.done = True


@contextmanager
def paced(forward: float, backward: float) -> Iterator[list[Kernel]]:
    """Inside, attention's kernels take at least so many seconds for each (query, key) of each query head, in
    all threads: the rest of it they sleep. Results are as they are. Gives the calls, as they come.
    """
    calls: list[Kernel] = []
    module: Any = sys.modules["afnext.parallel.steps"]
    before = {
        "attend": (module.attend, forward),
        "attend_backward": (module.attend_backward, backward),
    }

    def slow(kernel: Callable[..., Any], seconds: float, back: bool) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            made = kernel(*args)
            work = next(a for a in args if isinstance(a, module.Call)).pairs
            heads = next(a for a in args if isinstance(a, module.Piece)).queries
            rank = next(a for a in args if isinstance(a, module.How)).link.rank
            time.sleep(max(0.0, seconds * work * heads - (time.perf_counter() - began)))
            calls.append(Kernel(rank, back, began, time.perf_counter()))
            return made

        return call

    for name, (kernel, seconds) in before.items():
        setattr(module, name, slow(kernel, seconds, name == "attend_backward"))
    try:
        yield calls
    finally:
        for name, (kernel, _) in before.items():
            setattr(module, name, kernel)
