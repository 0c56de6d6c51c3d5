"""Ranks as threads of one process: the ``local`` link, for tests, and to time on one GPU what NCCL refuses to
run there (two ranks on one device).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor

from afnext.errors import AfnextError

from .link import Link, Work

Result = TypeVar("Result")


class _Room:
    """Where all ranks leave messages: a queue from each rank to each, for each kind."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.failed = threading.Event()
        self._lock = threading.Lock()
        self._queues: dict[Any, SimpleQueue] = defaultdict(SimpleQueue)

    def queue(self, kind: str, sender: int, receiver: int) -> SimpleQueue:
        with self._lock:
            return self._queues[kind, sender, receiver]


class _LocalWork:
    """Messages awaited: copied into place when they are waited for."""

    def __init__(self, link: LocalLink, awaited: Sequence[tuple[str, int, Tensor]]) -> None:
        self.link, self.awaited = link, awaited
        # On CUDA a buffer is free once the kernels that were there when it was given have run.
        devices = {into.device for _, _, into in awaited if into.is_cuda}
        self.free = {d: torch.cuda.current_stream(d).record_event() for d in devices}

    def wait(self) -> None:
        link = self.link
        for kind, sender, into in self.awaited:
            sent, ready = link.take(kind, sender)
            if not into.is_cuda:
                into.copy_(sent)
                continue
            stream = link.stream(into.device)
            stream.wait_event(ready)
            stream.wait_event(self.free[into.device])
            with torch.cuda.stream(stream):
                into.copy_(sent, non_blocking=True)
            sent.record_stream(stream)
            torch.cuda.current_stream(into.device).wait_stream(stream)
        self.awaited = ()


class LocalLink:
    """One thread's end; :func:`local_links` makes those of all."""

    def __init__(self, room: _Room, ulysses: int, ring: int, rank: int) -> None:
        self.ulysses, self.ring, self.rank = ulysses, ring, rank
        self._room = room
        self._stream: torch.cuda.Stream | None = None

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """The stream on which this rank's copies run."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream

    def take(self, kind: str, sender: int) -> Any:
        """The next message of a kind from a rank."""
        queue, room = self._room.queue(kind, sender, self.rank), self._room
        waited = 0.0
        while not room.failed.is_set():
            try:
                return queue.get(timeout=0.1)
            except Empty:
                waited += 0.1
                if waited >= room.timeout:
                    break
        why = "another rank failed" if room.failed.is_set() else f"nothing came in {waited:.0f} s"
        raise AfnextError(f"rank {self.rank}: waiting for rank {sender}: {why}")

    def _send(self, kind: str, receiver: int, x: Tensor) -> None:
        """Leave a copy: as between processes, what was sent may change once ``wait`` has returned. On CUDA a
        stream makes it beside this rank's kernels; that is what stands for the transfer.
        """
        ready = None
        if x.is_cuda:
            stream = self.stream(x.device)
            stream.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(stream):
                copy = x.clone()
                ready = stream.record_event()
            x.record_stream(stream)
        else:
            copy = x.clone()
        self._room.queue(kind, self.rank, receiver).put((copy, ready))

    def all_to_all(
        self, received: Tensor, sent: Tensor, received_rows: Sequence[int], sent_rows: Sequence[int]
    ) -> Work:
        first = self.rank - self.rank % self.ulysses
        peers = range(first, first + self.ulysses)
        for peer, rows in zip(peers, sent.split(list(sent_rows)), strict=True):
            self._send("heads", peer, rows)
        parts = received.split(list(received_rows))
        return _LocalWork(self, [("heads", p, x) for p, x in zip(peers, parts, strict=True)])

    def shift(self, received: Sequence[Tensor], sent: Sequence[Tensor]) -> Work:
        size = self.ulysses * self.ring
        for x in sent:
            self._send("ring", (self.rank + self.ulysses) % size, x)
        before = (self.rank - self.ulysses) % size
        return _LocalWork(self, [("ring", before, x) for x in received])


def local_links(ulysses: int, ring: int, timeout: float = 60.0) -> list[LocalLink]:
    """The links of all ranks; ``timeout`` in seconds for a message that does not come."""
    room = _Room(timeout)
    return [LocalLink(room, ulysses, ring, rank) for rank in range(ulysses * ring)]


def run_local(links: Sequence[Link], function: Callable[[Link], Result]) -> list[Result]:
    """Call ``function`` with each link in a thread of its own; results by rank.

    Backward runs in the rank's own thread: torch's would run those of all ranks of one device in a single
    one, where the first that waits for a message would wait for ever.

    Raises:
        the first error of any rank.
    """
    results: list[Any] = [None] * len(links)
    errors: list[BaseException] = []

    def rank_main(place: int) -> None:
        try:
            with torch.autograd.set_multithreading_enabled(False):
                results[place] = function(links[place])
        except BaseException as error:
            errors.append(error)
            room = getattr(links[place], "_room", None)
            if room is not None:
                room.failed.set()

    threads = [threading.Thread(target=rank_main, args=(i,)) for i in range(len(links))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
