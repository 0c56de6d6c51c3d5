"""What a call through torch costs beside an op of the same signature that only allocates its outputs.

Each op gets its smallest work, one token of one head of eight channels, so that the work is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from afnext import ops

from .timing import alternate

LIMIT = 3.0  # µs over the empty op: a rule of this project
_LIBRARY = torch.library.Library("afnext_benchmarks", "DEF")


def empty_op(op: str, outputs: Callable[..., Any]) -> Callable[..., Any]:
    """An op with the schema of ``op`` that returns ``outputs(*args)``."""
    schema = str(getattr(torch.ops.afnext, op).default._schema).removeprefix("afnext::")
    _LIBRARY.define(schema)
    _LIBRARY.impl(op, outputs, "CPU")
    overload: Callable[..., Any] = getattr(torch.ops.afnext_benchmarks, op).default
    return overload


def like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def with_lse(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty(q.shape[1], q.shape[0], dtype=torch.float32)


OUTPUTS: dict[str, Callable[..., Any]] = {
    "linear": like,
    "rotate": like,
    "rms_norm": like,
    "silu_mul": like,
    "attention": with_lse,
    "paged_attention": with_lse,
    "paged_append": lambda *_: None,
    "merge_attention": with_lse,
    "log_mel": lambda *_: torch.empty(0, 128),
}


def calls() -> dict[str, tuple[Callable[[], object], tuple[Any, ...]]]:
    """By name: a call of ours, and the arguments that it gives to torch."""
    q, lse, inv_freq, times = torch.randn(1, 1, 8), torch.zeros(1, 1), torch.ones(4), torch.zeros(1)
    x, weight = torch.randn(1, 8), torch.randn(8, 8)
    pages, table = torch.randn(1, 1, 16, 8), torch.zeros(1, 1, dtype=torch.int32)
    ends, zero, one = (torch.tensor(n, dtype=torch.int32) for n in ([0, 1], [0], [1]))
    turn, rotation = (times, inv_freq), ops.Rotation(times, times, inv_freq)
    silence = torch.zeros(0)
    policies = False, True, -1, -1, 8**-0.5
    paged, new = (q, pages, pages, table, ends, one), (q, q, pages, pages, table, ends, zero)
    return {
        "linear": (partial(ops.linear, x, weight), (x, weight, None)),
        "rotate": (partial(ops.rotate, q, *turn), (q, *turn, None, False, False)),
        "rms_norm": (partial(ops.rms_norm, x, weight[0], 1e-6), (x, weight[0], 1e-6)),
        "silu_mul": (partial(ops.silu_mul, x, x), (x, x)),
        "attention": (
            partial(ops.attention, q, q, q, causal=True, cu_seqlens_q=ends, rotation=rotation),
            (q, q, q, ends, ends, None, times, times, inv_freq, *policies, False),
        ),
        "paged_attention": (
            partial(ops.paged_attention, *paged, rotation=turn),
            (*paged, *turn, *policies, None, None),
        ),
        "paged_append": (
            partial(ops.paged_append, *new, rotation=turn),
            (*new, *turn, False, None, None),
        ),
        "merge_attention": (partial(ops.merge_attention, q, lse, q, lse), (q, lse, q, lse)),
        "log_mel": (partial(ops.log_mel, silence), (silence, [0, 0], [0])),
    }


def run() -> None:
    """Print one row an op, in inference mode and without."""
    empty = {op: empty_op(op, outputs) for op, outputs in OUTPUTS.items()}
    for mode in (torch.inference_mode, torch.no_grad):
        print(f" {mode.__name__}; at most {LIMIT} µs over the empty op")
        with mode():
            for op, (ours, args) in calls().items():
                floor_call = partial(empty[op], *args)
                timings = alternate({"ours": ours, "empty": floor_call}, rounds=15, at_least=1e-2)
                time, floor = timings["ours"].median * 1e6, timings["empty"].median * 1e6
                print(f"  {op:16} {time:6.2f} µs   {time - floor:+6.2f} µs over the empty op")
