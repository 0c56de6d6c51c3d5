"""A GPU's work as CUDA graphs, captured while other threads go on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import torch

# Held while a graph is captured. A capture begins with a wait for the device and gives unused memory back,
# and what another thread asks of the device meanwhile may end it: who copies from a GPU takes this first.
CAPTURING = Lock()


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: among it may be another graph, whose end would end a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class Captures:
    """Captures graphs of one device, whichever is current; they share their memory.

    Left to itself, torch captures on a stream of the device that was current at the process's first capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """``work``, done twice and then captured; what is returned does it again."""
        with torch.cuda.device(self._device):
            # Not on the stream of captures: libraries keep memory for each stream, and what a graph uses is
            # to be its own.
            side = torch.cuda.Stream(self._device)
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):
                for _ in range(2):  # libraries choose kernels and take memory at their first calls
                    work()
            torch.cuda.current_stream(self._device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Threads that are not ours may take memory meanwhile: only this one's calls are held to what a
            # capture allows.
            capture = torch.cuda.graph(
                graph, self._memory, self._stream, capture_error_mode="thread_local"
            )
            with CAPTURING, _uncollected(), capture:
                work()
        return graph.replay
