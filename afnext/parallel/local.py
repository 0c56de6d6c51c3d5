"""Ranks as threads of one process: the ``local`` link, for tests, and to time on one GPU what NCCL refuses to
run there (two ranks on one device).
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from afnext.errors import AfnextError

from .link import Link, Work

Result = TypeVar("Result")


class _Sent(NamedTuple):
    """A copy of what a rank sends; on CUDA it is there from an event on."""

    x: Tensor
    ready: torch.cuda.Event | None


class _Wanted:
    """Where a rank wants a message: copied into place as soon as both ranks have asked for it. On CUDA
    ``stream`` brings it, once the kernels have run that used the place before.
    """

    def __init__(self, into: Tensor, stream: torch.cuda.Stream | None) -> None:
        self.into, self.stream = into, stream
        self.taken = threading.Event()
        self.free = None if stream is None else torch.cuda.current_stream().record_event()
        self.there: torch.cuda.Event | None = None

    def take(self, sent: _Sent) -> None:
        """By whichever of the two ranks asked last."""
        if self.stream is None:
            self.into.copy_(sent.x)
        else:
            for event in (sent.ready, self.free):
                if event is not None:
                    self.stream.wait_event(event)
            with torch.cuda.stream(self.stream):
                self.into.copy_(sent.x, non_blocking=True)
            self.there = self.stream.record_event()
            for x in (sent.x, self.into):  # allocated on other streams
                x.record_stream(self.stream)
        self.taken.set()


Way = tuple[str, int, int]
"""Kind, sender, receiver."""


class _Room:
    """Where ranks meet: the n-th message of a way is for the n-th that is wanted there."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.failed = threading.Event()
        self._lock = threading.Lock()
        self._sent: dict[Way, deque[_Sent]] = defaultdict(deque)
        self._wanted: dict[Way, deque[_Wanted]] = defaultdict(deque)

    def send(self, way: Way, sent: _Sent) -> None:
        with self._lock:
            if not (waiting := self._wanted[way]):
                self._sent[way].append(sent)
                return
            wanted = waiting.popleft()
        wanted.take(sent)

    def want(self, way: Way, wanted: _Wanted) -> None:
        with self._lock:
            if not (waiting := self._sent[way]):
                self._wanted[way].append(wanted)
                return
            sent = waiting.popleft()
        wanted.take(sent)


class _LocalWork:
    """What a call wants, with the senders' ranks, and what it sent."""

    def __init__(
        self, link: LocalLink, wanted: Sequence[tuple[int, _Wanted]], sent: Sequence[_Sent]
    ) -> None:
        self.link, self.wanted = link, wanted
        self.left = [each.ready for each in sent if each.ready is not None]

    def wait(self) -> None:
        for sender, wanted in self.wanted:
            self.link.until_taken(sender, wanted)
        arrived = [w.there for _, w in self.wanted if w.there is not None]
        for event in (*arrived, *self.left):
            torch.cuda.current_stream().wait_event(event)
        self.wanted, self.left = (), []


class LocalLink:
    """One thread's end; :func:`local_links` makes those of all. On CUDA all ranks are on one device."""

    def __init__(self, room: _Room, ulysses: int, ring: int, rank: int) -> None:
        self.ulysses, self.ring, self.rank = ulysses, ring, rank
        self._room = room
        self._streams: dict[str, torch.cuda.Stream] = {}

    def _stream(self, x: Tensor, way: str) -> torch.cuda.Stream | None:
        """The stream of this rank's copies of what goes ``"in"`` or ``"out"``: beside its kernels, and so
        that what it sends does not wait for what comes. None on the host.
        """
        if not x.is_cuda:
            return None
        if way not in self._streams:
            self._streams[way] = torch.cuda.Stream(x.device)
        return self._streams[way]

    def until_taken(self, sender: int, wanted: _Wanted) -> None:
        """Until a message has been sent, and so its copy is under way; on the host it is made."""
        room, waited = self._room, 0.0
        while not wanted.taken.wait(0.1):
            waited += 0.1
            if room.failed.is_set() or waited >= room.timeout:
                why = "another rank failed"
                if not room.failed.is_set():
                    why = f"nothing came in {waited:.0f} s"
                raise AfnextError(f"rank {self.rank}: waiting for rank {sender}: {why}")

    def _send(self, kind: str, receiver: int, x: Tensor) -> _Sent:
        """Leave a copy: as between processes, what was sent may change once ``wait`` has returned. On CUDA it
        stands for the transfer.
        """
        x, stream = x.detach(), self._stream(x, "out")
        if stream is None:
            sent = _Sent(x.clone(), None)
        else:
            stream.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(stream):
                sent = _Sent(x.clone(), stream.record_event())
            x.record_stream(stream)
        self._room.send((kind, self.rank, receiver), sent)
        return sent

    def _want(self, kind: str, sender: int, into: Tensor) -> tuple[int, _Wanted]:
        wanted = _Wanted(into, self._stream(into, "in"))
        self._room.want((kind, sender, self.rank), wanted)
        return sender, wanted

    def all_to_all(
        self, received: Tensor, sent: Tensor, received_rows: Sequence[int], sent_rows: Sequence[int]
    ) -> Work:
        first = self.rank - self.rank % self.ulysses
        peers = range(first, first + self.ulysses)
        parts = zip(peers, sent.split(list(sent_rows)), strict=True)
        left = [self._send("heads", peer, x) for peer, x in parts]
        parts = zip(peers, received.split(list(received_rows)), strict=True)
        return _LocalWork(self, [self._want("heads", peer, x) for peer, x in parts], left)

    def shift(self, received: Sequence[Tensor], sent: Sequence[Tensor]) -> Work:
        size = self.ulysses * self.ring
        after, before = (self.rank + self.ulysses) % size, (self.rank - self.ulysses) % size
        left = [self._send("ring", after, x) for x in sent]
        return _LocalWork(self, [self._want("ring", before, x) for x in received], left)


def local_links(ulysses: int, ring: int, timeout: float = 60.0) -> list[LocalLink]:
    """The links of all ranks; ``timeout`` in seconds for a message that does not come."""
    room = _Room(timeout)
    return [LocalLink(room, ulysses, ring, rank) for rank in range(ulysses * ring)]


def run_local(links: Sequence[Link], function: Callable[[Link], Result]) -> list[Result]:
    """Call ``function`` with each link in a thread of its own; results by rank.

    Where torch has CUDA each thread has a stream of its own, so that a rank that waits holds up nobody else's
    kernels; the caller's stream waits for all of them.

    Backward runs in the rank's own thread: torch's would run those of all ranks of one device in a single
    one, where the first that waits for a message would wait for ever.

    Raises:
        the first error of any rank.
    """
    results: list[Any] = [None] * len(links)
    errors: list[BaseException] = []
    callers = torch.cuda.current_stream() if torch.cuda.is_available() else None

    def rank_main(place: int) -> None:
        try:
            with torch.autograd.set_multithreading_enabled(False), _stream_of_its_own(callers):
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


@contextmanager
def _stream_of_its_own(callers: torch.cuda.Stream | None) -> Iterator[None]:
    """Inside, kernels run on a stream that begins behind what the caller's has been given, and which that
    waits for at the end.
    """
    if callers is None:
        yield
        return
    own = torch.cuda.Stream(callers.device)
    own.wait_stream(callers)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        callers.wait_stream(own)
