"""Linear layers with int8 and int4 weights beside torch's quantised ones and bfloat16 by oneDNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops

from .case import LIMIT, Case, rotated
from .packed_linear import oneDNN, prepacked

SHAPES = [(18944, 3584), (3584, 18944)]  # (N, K): 7B's gate or up and down projections
ROWS = [1, 8, 64, 512]
# What the weights are stored in, and what x is rounded to: "int16" is weight-only in effect.
FORMATS = [
    ("int8", "int16"),
    ("int8", "int8"),
    ("int4-g128", "int16"),
    ("int4-g128", "int8"),
    ("int4-g32", "int8"),
]
TARGETS = {"int8": 0.9, "int4-g128": 0.7}  # shares of the limit, of one row in 8 bits
SLOW_PEERS = 64  # rows beyond which torch's int4 and int8 kernels take seconds


def peers(m: int, n: int, k: int, bits: int, x: Tensor) -> dict[str, Callable[[], object]]:
    """torch's own ways to the same product: of as many bits, and in bfloat16."""
    dense = rotated(lambda: torch.randn(n, k).bfloat16(), 2 * n * k)
    calls: dict[str, Callable[[], object]] = {
        "torch F.linear bfloat16": lambda: F.linear(x, dense())
    }
    if torch.backends.mkldnn.is_available():
        theirs = rotated(lambda: prepacked(dense(), m), 2 * n * k)
        calls["torch bfloat16, prepacked by oneDNN"] = lambda: oneDNN(x, theirs())
    if bits == 8:
        int8 = rotated(lambda: torch.randint(-127, 128, (n, k), dtype=torch.int8), n * k)
        rounded = torch.randint(-127, 128, (max(m, 17), k), dtype=torch.int8)  # 17 at least
        calls["torch _int_mm, x given as int8"] = lambda: torch._int_mm(rounded, int8().T)
        if m <= SLOW_PEERS:
            scales = torch.rand(n).bfloat16()
            calls["torch _weight_int8pack_mm"] = lambda: torch._weight_int8pack_mm(
                x, int8(), scales
            )
    elif m <= SLOW_PEERS:
        int4 = torch.randint(0, 16, (n, k), dtype=torch.int32)
        nibbles = rotated(lambda: torch._convert_weight_to_int4pack_for_cpu(int4, 1), n * k / 2)
        groups = torch.rand(k // 128, n, 2).bfloat16()
        calls["torch _weight_int4pack_mm g128"] = lambda: torch._weight_int4pack_mm_for_cpu(
            x, nibbles(), 128, groups
        )
    return calls


def layer(m: int, n: int, k: int, format: str, activations: str) -> Case:
    """Weights change from call to call; x is bfloat16, and rounding it is part of our time."""
    weight = ops.quantize(torch.randn(n, k), format)
    size = ops.pack(weight, activations=activations).nbytes
    packed = rotated(lambda: ops.pack(weight, activations=activations), size)
    x = torch.randn(m, k).bfloat16()
    return Case(
        f"{format} weights, {activations} x: [{m}, {k}] x [{n}, {k}]",
        label="ops.linear, packed",
        ours=lambda: ops.linear(x, packed()),
        peers=peers(m, n, k, 8 if format.startswith("int8") else 4, x),
        flops=2 * m * n * k,
        bytes=size + 2 * m * (n + k),
        dtype="int8" if activations == "int8" else "bfloat16",
        targets={LIMIT: TARGETS[format]}
        if m == 1 and activations == "int8" and format in TARGETS
        else {},
        context=torch.inference_mode,
        rounds=5 if m > SLOW_PEERS else 9,
        slow=format != "int8" or m > SLOW_PEERS,
    )


def cases() -> Iterator[Case]:
    """Every format and shape."""
    for n, k in SHAPES:
        for m in ROWS:
            for format, activations in FORMATS:
                yield layer(m, n, k, format, activations)
