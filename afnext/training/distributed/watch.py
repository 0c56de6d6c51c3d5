"""Signs of life that the processes of a run give one another: one that dies or stands still ends all of them,
and they say which it was.

Each process writes where it is into the store that they met at, every second, and looks after the next one
and after what anybody reports. What is stuck within a message between GPUs cannot be told anything any more:
its process ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

BEAT = 1.0
"""Seconds between two signs."""
SILENCE = 60.0
"""Seconds without one after which a process counts as dead; where it has hung up, ``GONE`` are enough."""
GONE = 5.0
GRACE = 10.0
"""Seconds to end by itself that a process has once the end is known."""
OTHERS = "the others"
"""What a process awaits that has nothing to do but wait for all of them."""
FAILED = "failed"


@dataclass(frozen=True)
class Place:
    """Where a process is: ``number`` counts its places, ``what`` says it; by ``deadline`` (of this machine's
    monotonic clock) it must be elsewhere.
    """

    number: int
    what: str
    since: float
    deadline: float


class Unwatched:
    """For one process, or where others care for them."""

    def at(self, what: str, seconds: float = float("inf")) -> None:
        """This process is ``what`` (at a step, say) now, for so many seconds at most."""

    def awaits(self, number: int, what: str) -> None:
        """This process waits for ``what``, the ``number``-th message among those who share its sequences; for
        nothing if that is empty.
        """

    def failed(self, why: str) -> None:
        """This process ends."""

    def explain(self) -> str:
        """Who ended or is gone; empty where nobody is."""
        return ""

    def close(self) -> None:
        """The run has come to its end."""


class Watch(Unwatched):
    """Of one process.

    Args:
        store: where all meet.
        rank, size: this process's, and how many there are.
        silence: seconds without a sign that end the run.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, silence: float = SILENCE) -> None:
        self.rank, self.size, self.silence = rank, size, silence
        # A connection of its own: the other one may be waiting.
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]
        self._lock = threading.Lock()
        self._place = Place(0, "at the beginning", time.monotonic(), float("inf"))
        self._awaited = (0, "")
        self._ended = threading.Event()
        self._beats = 0
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def at(self, what: str, seconds: float = float("inf")) -> None:
        now = time.monotonic()
        self._place = Place(self._place.number + 1, what, now, now + seconds)

    def awaits(self, number: int, what: str) -> None:
        self._awaited = number, what

    def failed(self, why: str) -> None:
        self._report(f"rank {self.rank} ended: {why}")

    def explain(self) -> str:
        """For a message that failed: who reported his end, or gives no sign any more."""
        before = self._signs()
        limit = time.monotonic() + GONE
        while time.monotonic() < limit:
            if reported := self._reported():
                return reported
            time.sleep(BEAT / 4)
        after = self._signs()
        gone = [r for r in range(self.size) if r != self.rank and before[r] == after[r] != "done"]
        if gone:
            self._report(f"rank {gone[0]} died (its last sign: {_what(after[gone[0]])})")
        return self._reported()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(
            RuntimeError
        ):  # the store has gone with another process that has come to its end
            self._set(self._key(self.rank), "done")

    def _key(self, rank: int) -> str:
        return f"afnext/watch/{rank}"

    def _set(self, key: str, value: str) -> None:
        with self._lock:
            self._store.set(key, value)

    def _get(self, key: str) -> str:
        """What is there; empty where nothing is."""
        with self._lock:
            return self._store.get(key).decode() if self._store.check([key]) else ""

    def _report(self, why: str) -> None:
        """The first one counts."""
        if not self._reported():
            self._set(FAILED, why)

    def _reported(self) -> str:
        return self._get(FAILED)

    def _signs(self) -> list[str]:
        return [self._get(self._key(rank)) for rank in range(self.size)]

    def _beat(self) -> None:
        self._beats += 1
        place, awaited = self._place, self._awaited
        sign = (self._beats, place.number, place.what, *awaited)
        self._set(self._key(self.rank), "\t".join(map(str, sign)))

    def _watch(self) -> None:
        following = (self.rank + 1) % self.size
        seen, since = "", time.monotonic()
        while not self._ended.wait(BEAT):
            try:
                self._beat()
                sign, now = self._get(self._key(following)), time.monotonic()
                if sign != seen or sign == "done":
                    seen, since = sign, now
                elif now - since > self.silence:
                    self._report(
                        f"rank {following} gives no sign of life for {now - since:.0f} s (the last: "
                        f"{_what(sign)}): its process or the link to it stands still"
                    )
                if now > self._place.deadline:
                    self._report(self._who_is_late())
                why = self._reported()
            except (RuntimeError, ValueError) as error:  # the store is gone, with whoever held it
                why = f"the processes' store cannot be reached: {_first_line(error)}"
            if why and not self._ended.wait(GRACE):
                _end(self.rank, why)
                return

    def _who_is_late(self) -> str:
        """Of processes that wait for one another the one that is least far, and busy if others there wait."""
        signs = self._signs()
        numbers = [int(s.split("\t")[1]) if s and s != "done" else sys.maxsize for s in signs]
        late = min(numbers)
        seconds = time.monotonic() - self._place.since
        there = [rank for rank, number in enumerate(numbers) if number == late]
        ranks = [r for r in there if signs[r].split("\t")[4:] != [OTHERS]] or there
        what = _what(signs[ranks[0]])
        lost = _lost({rank: signs[rank] for rank in ranks})
        if len(ranks) == self.size:
            lost = lost or "a message between them does not arrive"
            return f"every rank is {what} for {seconds:.0f} s: {lost}"
        return (
            f"rank {', '.join(map(str, ranks))} is {what} for {seconds:.0f} s, and the others wait for it: "
            f"{lost or 'the timeout is over'}"
        )


def _what(sign: str) -> str:
    return sign.split("\t")[2] if "\t" in sign else sign or "none"


def _lost(signs: Mapping[int, str]) -> str:
    """By the signs of some ranks, the first of the messages that they await: the others may only follow from
    it. Empty where none is known.
    """
    awaited: dict[int, list[str]] = defaultdict(list)
    for rank, sign in signs.items():
        number, what = sign.split("\t")[3:] if "\t" in sign else ("0", "")
        if what and what != OTHERS:
            awaited[int(number)].append(f"rank {rank} waits for {what}")
    if not awaited:
        return ""
    return f"{' and '.join(awaited[min(awaited)])}, which does not arrive"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _end(rank: int, why: str) -> None:
    print(f"error: rank {rank} ends: {why}", file=sys.stderr, flush=True)
    os._exit(1)
