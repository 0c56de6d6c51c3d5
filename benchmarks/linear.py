"""Linear layers of a decode step and of a prefill beside torch's F.linear and the machine's limits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from afnext import ops

from .case import Case, rotated

# (rows of x, N, K): 7B's attention output for one token, a small batch and a prefill; nano's MLP.
SHAPES = [(1, 3584, 3584), (8, 3584, 3584), (512, 3584, 3584), (1, 1024, 384), (256, 1024, 384)]
IN_CACHE = 4 << 20  # bytes of a weight that stays there from step to step


def layer(m: int, n: int, k: int, dtype: torch.dtype) -> Case:
    """Weights change from call to call, as they do from layer to layer, unless the caches hold them."""
    size = n * k * dtype.itemsize
    large = size > IN_CACHE
    x = torch.randn(m, k).to(dtype)
    weight = rotated(lambda: torch.randn(n, k).to(dtype), size, copies=None if large else 1)
    name = str(dtype).removeprefix("torch.")
    return Case(
        f"[{m}, {k}] x [{n}, {k}] {name}",
        label="ops.linear",
        ours=lambda: ops.linear(x, weight()),
        peers={"torch F.linear": lambda: F.linear(x, weight())},
        flops=2 * m * n * k,
        bytes=size + m * (n + k) * dtype.itemsize if large else 0,
        dtype=name,
    )


def cases() -> Iterator[Case]:
    """Every shape in both dtypes."""
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            yield layer(*shape, dtype)
