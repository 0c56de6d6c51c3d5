"""Fair timings: contestants alternate, medians with their spread, the machine's limits measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch

from afnext.ops import runtime


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{milliseconds(self.median)} ({milliseconds(self.low)} to {milliseconds(self.high)})"
        )


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    return f"{seconds * 1e3:.3g} ms"


def alternate(
    contestants: dict[str, Callable[[], object]], rounds: int = 9, at_least: float = 2e-3
) -> dict[str, Timing]:
    """Time each contestant once a round, in turn, so that drift of the machine hits all of them.

    Args:
        contestants: what to call, by name. Each is called once beforehand.
        rounds: how many timings each gets.
        at_least: seconds a timing must last; shorter calls are repeated within it.
    """
    repeats = {}
    for name, call in contestants.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(at_least / max(time.perf_counter() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    timings = {}
    for name, values in seconds.items():
        low, _, high = quantiles(values, n=4)
        timings[name] = Timing(median(values), low, high)
    return timings


def compare(contestants: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, Timing]:
    """Print one line a contestant; the first is ours, the others are given as its multiples."""
    timings = alternate(contestants, rounds)
    ours = next(iter(timings.values())).median
    for name, timing in timings.items():
        print(f"  {name:34} {timing!s:44} x{timing.median / ours:.3g}")
    return timings


def bandwidth(megabytes: int = 256) -> float:
    """Bytes a second that all threads together read from memory, the best of several passes."""
    source = torch.ones(megabytes << 18)
    return source.numel() * 4 / min(_seconds(source.sum) for _ in range(5))


def peak_flops(dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Operations a second of torch's matrix product of ``dtype``, the best of several."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(_seconds(lambda: a @ b) for _ in range(5))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def machine() -> str:
    """One line: processor, instruction set, threads, load, versions."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return (
        f"{name}, {runtime.cpu_isa()}, {runtime.num_threads()} threads (torch {torch.get_num_threads()}), "
        f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, Python {platform.python_version()}"
    )
