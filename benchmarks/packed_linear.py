"""Packed linear layers of 7B's decode and prefill beside torch, plain and prepacked by oneDNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops

from .case import LIMIT, Case, rotated

# (N, K): 7B's gate or up, down, and query-key-value projections.
WEIGHTS = [(18944, 3584), (3584, 18944), (4608, 3584)]
ROWS = [1, 8, 64, 512, 2048]
PREPACKED = "torch, prepacked by oneDNN"
# In bfloat16, by M, N, K.
TARGETS = {
    (512, 18944, 3584): {PREPACKED: 1.4},
    (512, 3584, 18944): {PREPACKED: 1.2},
    (1, 18944, 3584): {LIMIT: 0.92},
}


def prepacked(weight: Tensor, rows: int) -> Tensor:
    """The weight in the order that oneDNN prefers for this number of rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def oneDNN(x: Tensor, weight: Tensor) -> Tensor:
    """``F.linear`` with a prepacked weight."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def layer(m: int, n: int, k: int, dtype: torch.dtype) -> Case:
    """Weights change from call to call, as they do from layer to layer."""
    name, size = str(dtype).removeprefix("torch."), n * k * dtype.itemsize
    x = torch.randn(m, k).to(dtype)
    plain = rotated(lambda: torch.randn(n, k).to(dtype), size)
    packed = rotated(lambda: ops.pack(plain(), name), size)
    peers: dict[str, Callable[[], object]] = {"torch F.linear": lambda: F.linear(x, plain())}
    if torch.backends.mkldnn.is_available():
        theirs = rotated(lambda: prepacked(plain(), m), size)
        peers[PREPACKED] = lambda: oneDNN(x, theirs())
    return Case(
        f"{name} [{m}, {k}] x [{n}, {k}]",
        label="ops.linear, packed",
        ours=lambda: ops.linear(x, packed()),
        peers=peers,
        flops=2 * m * n * k,
        bytes=size + m * (n + k) * dtype.itemsize,
        dtype=name,
        targets=TARGETS.get((m, n, k), {}) if dtype == torch.bfloat16 else {},
        context=torch.inference_mode,
        rounds=5 if m > 64 else 9,
        slow=m > 512 or dtype == torch.float32,
    )


def cases() -> Iterator[Case]:
    """Every shape in both dtypes."""
    for dtype in (torch.bfloat16, torch.float32):
        for n, k in WEIGHTS:
            for m in ROWS:
                yield layer(m, n, k, dtype)
