"""How much longer a folder takes: by seconds of audio, since files differ a thousandfold in length."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from time import perf_counter


class Estimate:
    """Time left for a set of recordings; may be told things from several threads.

    Recordings whose length is not known, or not yet, are taken to be as long as the others are on
    average.

    Args:
        files: what is to be done.
        clock: seconds, from any start.

    Attributes:
        files: how many there are in all.
        finished: how many of them are done.
    """

    def __init__(self, files: Iterable[str], clock: Callable[[], float] = perf_counter) -> None:
        self._left: dict[str, float | None] = dict.fromkeys(files)
        self.files, self.finished = len(self._left), 0
        self._heard, self._answered = 0.0, 0
        self._clock, self._started = clock, clock()
        self._lock = Lock()

    def learn(self, file: str, seconds: float | None) -> None:
        """A recording's length, as its header states it."""
        with self._lock:
            if file in self._left:
                self._left[file] = seconds

    def finish(self, file: str, seconds: float | None) -> None:
        """A recording is done, and was so long; None where it could not be used."""
        with self._lock:
            del self._left[file]
            self.finished += 1
            if seconds is not None:
                self._heard += seconds
                self._answered += 1

    def audio(self) -> tuple[float, float] | None:
        """Seconds of audio heard and to be heard; None while nothing is known of them."""
        with self._lock:
            known = [s for s in self._left.values() if s is not None]
            unknown, heard, answered = len(self._left) - len(known), self._heard, self._answered
        total, count = sum(known) + heard, len(known) + answered
        if unknown and not count:
            return None
        return heard, sum(known) + (unknown * total / count if unknown else 0.0)

    def time_left(self) -> float | None:
        """Seconds; None before anything is done that tells how fast the work goes."""
        audio = self.audio()
        if audio is None or audio[0] <= 0:
            return None
        heard, left = audio
        return (self._clock() - self._started) * left / heard
