"""Packed linear layers of 7B's decode and prefill beside torch, plain and prepacked, and the limits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops

from . import peaks
from .timing import bandwidth, compare, milliseconds

# (N, K): 7B's gate or up, down, and query-key-value projections.
WEIGHTS = [(18944, 3584), (3584, 18944), (4608, 3584)]
ROWS = [1, 8, 64, 512, 2048]
CACHE = 256 << 20  # weights that together exceed the caches, as the layers of a model do


def torch_prepacked(weight: Tensor, rows: int) -> Tensor:
    """The weight in the order that oneDNN prefers for this number of rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def contestants(
    m: int, n: int, k: int, dtype: torch.dtype, count: int
) -> dict[str, Callable[[], object]]:
    """The same layer by us and by torch, over ``count`` weights in turn."""
    x = torch.randn(m, k).to(dtype)
    weights = [torch.randn(n, k).to(dtype) for _ in range(count)]
    name = str(dtype).removeprefix("torch.")
    packed = cycle([ops.pack(w, name) for w in weights])
    calls: dict[str, Callable[[], object]] = {
        "ops.linear, packed": lambda: ops.linear(x, next(packed))
    }
    plain = cycle(weights)
    calls["torch F.linear"] = lambda: F.linear(x, next(plain))
    if torch.backends.mkldnn.is_available():
        theirs = cycle([torch_prepacked(w, m) for w in weights])
        linear = torch.ops.mkldnn._linear_pointwise
        calls["torch, prepacked by oneDNN"] = lambda: linear(x, next(theirs), None, "none", [], "")
    return calls


def run(
    weights: list[tuple[int, int]] = WEIGHTS,
    rows: list[int] = ROWS,
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32),
) -> None:
    """Print the table."""
    with torch.inference_mode():
        memory = bandwidth()
        for dtype in dtypes:
            peak = peaks.compute(str(dtype).removeprefix("torch."))
            name = str(dtype).removeprefix("torch.")
            print(
                f" memory {memory / 1e9:.1f} GB/s, {name} matrix product {peak / 1e9:.0f} GFLOP/s"
            )
            for n, k in weights:
                size = n * k * dtype.itemsize
                for m in rows:
                    print(f" {name} [{m}, {k}] x [{n}, {k}]")
                    count = max(1, -(-CACHE // size)) if m <= 64 else 1
                    timings = compare(contestants(m, n, k, dtype, count), 5 if m > 64 else 9)
                    ours = next(iter(timings.values())).median
                    print(
                        f"  ours: {size / ours / 1e9:.3g} GB/s, {2 * m * n * k / ours / 1e9:.3g} GFLOP/s; "
                        f"limit: memory {milliseconds(size / memory)}, "
                        f"arithmetic {milliseconds(2 * m * n * k / peak)}"
                    )
