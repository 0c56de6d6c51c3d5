"""What a call through torch costs beside an op of the same signature that does nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from afnext import ops
from afnext.ops._compiled import compiled

from .timing import alternate

_LIBRARY = torch.library.Library("afnext_benchmarks", "DEF")
_LIBRARY.define("empty(Tensor x, Tensor weight, float eps) -> Tensor")
_LIBRARY.impl("empty", lambda x, weight, eps: torch.empty_like(x), "CPU")


def run() -> None:
    """One row of 64 numbers, so that the work itself is nothing."""
    empty = torch.ops.afnext_benchmarks.empty.default
    calls: dict[str, Callable[[], object]] = {
        "empty op": lambda: empty(x, weight, 1e-6),
        "ops.rms_norm": lambda: ops.rms_norm(x, weight, 1e-6),
        "ops.silu_mul": lambda: ops.silu_mul(x, x),
        "_C.rms_norm, output given": lambda: compiled.rms_norm(x, None, weight, 1e-6, out, None),
    }
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            x, weight = torch.randn(1, 64), torch.randn(64)
            out = torch.empty_like(x)
            timings = alternate(calls, rounds=15, at_least=2e-2)
        floor = timings["empty op"].median
        print(f" {mode.__name__}")
        for name, timing in timings.items():
            over = (timing.median - floor) * 1e6
            print(f"  {name:28} {timing.median * 1e6:6.2f} µs   {over:+6.2f} µs over the empty op")
