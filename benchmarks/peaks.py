"""The machine's limits, measured once a process: bytes a second from memory, operations a second by dtype.

Operands are random: zeros keep the wires still, and the clock higher than any real work sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from .machine import largest_cache, memory_bytes

PASSES = 7
BUFFERS = 4
SECONDS = {"memory": 2.0, "compute": 0.3}  # for which each is tried: another machine's noise passes
SIZE = 1024  # of torch's square matrix products
_best: dict[str, float] = {}


def memory() -> float:
    """Bytes a second that all threads together read from a buffer far larger than the caches."""
    return _known("memory")


def compute(dtype: str) -> float:
    """Operations a second in ``float32``, ``bfloat16`` or ``int8``: the best of loops that stay in the
    registers and of torch's matrix product."""
    return _known(dtype)


def again(what: str) -> None:
    """Measure ``"memory"`` or a dtype once more; the better one of all times counts from now on."""
    found = _read() if what == "memory" else max(_in_registers(what), _torch_product(what))
    _best[what] = max(found, _best.get(what, 0.0))


def _known(what: str) -> float:
    if what not in _best:
        again(what)
    return _best[what]


def _read() -> float:
    """The best of several buffers: where one comes to lie in memory may make a third of its rate, or more.

    NumPy asks for huge pages (2 MB), without which the same loop may lose a fifth to page walks.
    """
    from afnext.ops._compiled import compiled

    size = max(256 << 20, 4 * largest_cache())
    count = max(1, min(BUFFERS, memory_bytes() // 8 // size))
    random = np.random.default_rng(0)
    buffers = [random.integers(2**63, size=size // 8) for _ in range(count)]
    seconds = SECONDS["memory"] / count
    return max(size / _fastest(partial(compiled.peak_read, b), seconds) for b in buffers)


def _in_registers(dtype: str) -> float:
    """Operations a second of multiply-adds on registers alone, in all threads; the best instruction
    that our kernels have for the dtype on this machine."""
    from afnext.ops._compiled import compiled

    operands = torch.randn(64)
    steps = 1 << 14
    while True:
        start = time.perf_counter()
        operations: int = compiled.peak_arithmetic(dtype, operands, steps)
        seconds = time.perf_counter() - start
        if seconds > 5e-3:
            break
        steps *= 2
    return operations / _fastest(
        lambda: compiled.peak_arithmetic(dtype, operands, steps), SECONDS["compute"]
    )


def _torch_product(dtype: str) -> float:
    """Operations a second of torch's own matrix product; 0 where it has none."""
    kind = getattr(torch, dtype)
    product: Callable[..., Any] = torch.matmul
    if kind == torch.int8:
        a, b = (torch.randint(-127, 128, (SIZE, SIZE), dtype=kind) for _ in range(2))
        product = torch._int_mm
    else:
        a, b = (torch.randn(SIZE, SIZE).to(kind) for _ in range(2))
    try:
        return 2 * SIZE**3 / _fastest(lambda: product(a, b), SECONDS["compute"])
    except RuntimeError:
        return 0.0


def _fastest(call: Callable[[], object], seconds: float) -> float:
    """Of ``PASSES`` calls at least, and of as many as begin within so many seconds."""
    best, passes, end = float("inf"), 0, time.perf_counter() + seconds
    while passes < PASSES or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        passes += 1
    return best
