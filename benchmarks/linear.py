"""Linear layers of a decode step and of a prefill beside torch's F.linear and the machine's limits."""

from __future__ import annotations

from itertools import cycle

import torch
import torch.nn.functional as F

from afnext import ops

from .timing import bandwidth, compare, milliseconds, peak_flops

# (rows of x, N, K): 7B's attention output for one token, a small batch and a prefill; nano's MLP.
SHAPES = [(1, 3584, 3584), (8, 3584, 3584), (512, 3584, 3584), (1, 1024, 384), (256, 1024, 384)]
CACHE = 256 << 20  # weights that together exceed the caches, as the layers of a model do


def run() -> None:
    """Print the table."""
    memory, peak = bandwidth(), peak_flops()
    print(f" memory {memory / 1e9:.1f} GB/s, float32 matrix product {peak / 1e9:.0f} GFLOP/s")
    for m, n, k in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            size = n * k * dtype.itemsize
            count = min(16, max(1, CACHE // size)) if m <= 16 and size > 1 << 20 else 1
            weights = cycle([torch.randn(n, k).to(dtype) for _ in range(count)])
            x = torch.randn(m, k).to(dtype)
            print(f" [{m}, {k}] x [{n}, {k}] {str(dtype).removeprefix('torch.')}")
            timings = compare(
                {
                    "ops.linear": lambda x=x, w=weights: ops.linear(x, next(w)),  # type: ignore[misc]
                    "torch F.linear": lambda x=x, w=weights: F.linear(x, next(w)),  # type: ignore[misc]
                }
            )
            ours = timings["ops.linear"].median
            print(
                f"  ours: {size / ours / 1e9:.3g} GB/s, {2 * m * n * k / ours / 1e9:.3g} GFLOP/s; limit: "
                f"memory {milliseconds(size / memory)}, float32 {milliseconds(2 * m * n * k / peak)}"
            )
