"""Products with packed weights of a 7B model's shapes, few rows at a time, beside torch in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from afnext import ops

from ..case import Case
from .lab import Lab
from .row import Row

ROUNDED = 512  # rows of a weight that are rounded, on the CPU; the others repeat them


def packed(lab: Lab, n: int, k: int, format: str, gate_up: bool = False) -> ops.PackedWeight:
    """Of random numbers; in a quantised format the same few rows recur, since its bytes are what counts."""
    if format in ("bfloat16", "float16"):
        return ops.pack(lab.random(n, k) * k**-0.5, format, gate_up)
    quantized = ops.quantize((lab.random(min(n, ROUNDED), k) * k**-0.5).cpu(), format)
    rows = torch.arange(n) % min(n, ROUNDED)
    repeated = {
        name: part[rows].to(lab.device)
        for name in ("values", "scales", "zeros")
        if (part := getattr(quantized, name)) is not None
    }
    return ops.pack(replace(quantized, **repeated, shape=(n, k)), gate_up=gate_up)


def another(weight: ops.PackedWeight) -> ops.PackedWeight:
    """The same numbers in memory of their own."""
    return replace(weight, data=weight.data.clone())


def packed_linear(lab: Lab, format: str, m: int, n: int, k: int) -> Case:
    x = lab.random(m, k)
    first = packed(lab, n, k, format)
    weights = lab.rotated(lambda: another(first), first.nbytes)
    plain = lab.rotated(lambda: lab.random(n, k), 2 * n * k)
    return Case(
        f"{format}, [{m}, {k}] x [{n}, {k}]",
        ours=lambda: ops.linear(x, weights()),
        peers={"torch, bfloat16": lambda: F.linear(x, plain())},
        flops=2.0 * m * n * k,
        bytes=first.nbytes + 2.0 * m * (n + k),
        dtype="bfloat16",
    )


ROWS = [
    Row("packed_linear", packed_linear, {"format": format, "m": m, "n": n, "k": k},
        {"n": 64, "k": 128, "m": 2, "format": "bfloat16" if format == "fp8" else format})
    for n, k in ((37888, 3584), (3584, 18944), (4608, 3584))
    for format in ("bfloat16", "int8", "int4-g128", "fp8")
    for m in (1, 8, 64)
]  # fmt: skip
