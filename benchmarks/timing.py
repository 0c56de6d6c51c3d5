"""Fair timings: contestants alternate, medians with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

from torch.profiler import record_function

# Seconds before a timing: torch's idle OpenMP workers spin for some milliseconds after its ops, and
# would take a core from whoever comes next.
SETTLE = 0.03
LONG = 0.5  # seconds of a call whose own beginning warms up whatever there is to warm


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """From at least two measurements."""
        low, _, high = quantiles(seconds, n=4, method="inclusive")
        return cls(median(seconds), low, high)

    def __str__(self) -> str:
        return (
            f"{milliseconds(self.median)} ({milliseconds(self.low)} to {milliseconds(self.high)})"
        )


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    return f"{seconds * 1e3:.3g} ms"


def alternate(
    contestants: Mapping[str, Callable[[], object]], rounds: int = 9, at_least: float = 2e-3
) -> dict[str, Timing]:
    """Time each contestant once a round, in turn, so that drift of the machine hits all of them.

    Args:
        contestants: what to call, by name. Each is called once beforehand, and where that takes less
            than ``LONG`` again before every timing.
        rounds: how many timings each gets, two at least.
        at_least: seconds a timing must last; shorter calls are repeated within it.
    """
    repeats = {}
    for name, call in contestants.items():
        if (once := _seconds(call)) < LONG:
            once = _seconds(call)
        repeats[name] = 0 if once >= LONG else max(1, round(at_least / max(once, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            time.sleep(SETTLE)
            with record_function(name):  # in a profile
                seconds[name].append(_timed(call, repeats[name]))
    return {name: Timing.of(values) for name, values in seconds.items()}


def _timed(call: Callable[[], object], repeats: int) -> float:
    """Seconds a call; a long one (``repeats`` is 0) is called once."""
    if repeats == 0:
        return _seconds(call)
    call()  # wakes our own threads, and warms what the contestant before cooled
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
