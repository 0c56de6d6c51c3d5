"""Linear layers of a decode step and of a prefill beside torch's F.linear and the machine's limits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from afnext import ops

from .case import Case, rotated

# (N, K): 7B's gate or up and down projections, the encoder's attention output, nano's MLP.
WEIGHTS = [(18944, 3584), (3584, 18944), (1280, 1280), (1024, 384)]
ROWS = [1, 8, 64, 512]
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
        context=torch.inference_mode,
        rounds=5 if m > 64 else 9,
        slow=m > 64 and n * k > 1 << 24,
    )


def cases() -> Iterator[Case]:
    """Every shape in both dtypes."""
    for dtype in (torch.bfloat16, torch.float32):
        for n, k in WEIGHTS:
            for m in ROWS:
                yield layer(m, n, k, dtype)
