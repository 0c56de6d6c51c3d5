"""A device to measure on: its memory, its clock, what it can do at most.

On a GPU, calls are timed by events, several in a row behind a kernel that keeps the device busy while they
are queued, so that what is measured is the device's time and not the host's. In a rehearsal everything runs
on the CPU, by a wall clock: it proves that the code runs, and its figures mean nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import cycle
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from ..results import Peaks
from ..timing import Timing

T = TypeVar("T")
Call = Callable[[], object]

REGION = 4e-3  # seconds of a timing, about
MOST_CALLS = 200  # in a region: the queue of launches is finite
SPIN_HZ = 1.5e9  # about what `torch.cuda._sleep` counts in a second


class Lab:
    """A GPU, or the CPU that plays it in a rehearsal."""

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.rounds = 2 if rehearse else 9

    @property
    def l2_bytes(self) -> int:
        return 0 if self.rehearse else torch.cuda.get_device_properties(0).L2_cache_size

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype)

    def rotated(self, make: Callable[[], T], size: float) -> Callable[[], T]:
        """Another of several inputs of ``size`` bytes at each call: more than twice the L2 together."""
        copies = 2 if self.rehearse else min(64, 1 + int(2 * self.l2_bytes / max(1.0, size)))
        return cycle([make() for _ in range(max(2, copies))]).__next__

    def wait(self) -> None:
        if not self.rehearse:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give back the memory of rows that are done."""
        gc.collect()
        if not self.rehearse:
            torch.cuda.empty_cache()

    def captured(self, call: Call) -> Call:
        """The call as a CUDA graph's replay, which keeps what the call reads; in a rehearsal, the call."""
        if self.rehearse:
            call()
            return call
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        # A graph alone does not hold the tensors that it was captured with.
        return lambda keep=call: graph.replay()  # type: ignore[misc]

    def time(self, contestants: Mapping[str, Call]) -> dict[str, Timing]:
        """Seconds a call of each, in turn, so that the device's drift hits all of them."""
        repeats = {name: self._repeats(call) for name, call in contestants.items()}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(self.rounds):
            for name, call in contestants.items():
                seconds[name].append(self._region(call, *repeats[name]))
        return {name: Timing.of(values) for name, values in seconds.items()}

    def _repeats(self, call: Call) -> tuple[int, float]:
        """How many calls make a region, and the seconds that queueing one takes the host."""
        for _ in range(1 if self.rehearse else 3):
            call()
        self.wait()
        start = time.perf_counter()
        call()
        queued = time.perf_counter() - start
        self.wait()
        whole = time.perf_counter() - start
        return (1 if self.rehearse else max(1, min(MOST_CALLS, round(REGION / whole)))), queued

    def _region(self, call: Call, repeats: int, queued: float) -> float:
        if self.rehearse:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()  # what it takes, in the caches or not, as the calls after it find it
        torch.cuda._sleep(int(SPIN_HZ * min(0.05, 1.5 * queued * repeats + 1e-4)))
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / repeats

    @cached_property
    def peaks(self) -> Peaks:
        """Bytes a second of a large copy, read and written; operations a second of large products of random
        numbers. Lower than a datasheet's, and what can be had."""
        size = (1 << 16) if self.rehearse else (1 << 30)
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        memory = 2 * size / self.median(lambda: target.copy_(source))
        n = 64 if self.rehearse else 8192
        compute = {}
        for dtype in (torch.bfloat16, torch.float16):
            a, b = self.random(n, n, dtype=dtype), self.random(n, n, dtype=dtype)
            name = str(dtype).removeprefix("torch.")
            compute[name] = 2 * n**3 / self.median(lambda a=a, b=b: a @ b)  # type: ignore[misc]
        return Peaks(memory, compute)

    def median(self, call: Call) -> float:
        return median([self.time({"": call})[""].median for _ in range(2)])
