"""The machine's limits, measured once a process: bytes a second from memory, operations a second by dtype.

Operands are random: zeros keep the wires still, and the clock higher than any real work sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from .machine import largest_cache

PASSES = 7
SIZE = 1024  # of torch's square matrix products


@cache
def memory() -> float:
    """Bytes a second that all threads together read from a buffer far larger than the caches.

    NumPy asks for huge pages (2 MB), without which the same loop may lose a fifth to page walks.
    """
    size = max(256 << 20, 4 * largest_cache())
    buffer = np.random.default_rng(0).integers(2**63, size=size // 8)
    from afnext.ops._compiled import compiled

    return size / _fastest(lambda: compiled.peak_read(buffer))


@cache
def compute(dtype: str) -> float:
    """Operations a second in ``float32``, ``bfloat16`` or ``int8``: the best of loops that stay in the
    registers and of torch's matrix product."""
    return max(in_registers(dtype), torch_product(dtype))


@cache
def in_registers(dtype: str) -> float:
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
    return operations / _fastest(lambda: compiled.peak_arithmetic(dtype, operands, steps))


@cache
def torch_product(dtype: str) -> float:
    """Operations a second of torch's own matrix product; 0 where it has none."""
    kind = getattr(torch, dtype)
    product: Callable[..., Any] = torch.matmul
    if kind == torch.int8:
        a, b = (torch.randint(-127, 128, (SIZE, SIZE), dtype=kind) for _ in range(2))
        product = torch._int_mm
    else:
        a, b = (torch.randn(SIZE, SIZE).to(kind) for _ in range(2))
    try:
        return 2 * SIZE**3 / _fastest(lambda: product(a, b))
    except RuntimeError:
        return 0.0


def _fastest(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(PASSES):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
