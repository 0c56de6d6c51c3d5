"""What handing work to threads costs, alone and in turn with torch's own threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from afnext import ops
from afnext.ops import runtime
from afnext.ops._compiled import compiled

from .case import Call, Case

CALLS = 100


def times(count: int, *calls: Call) -> Callable[[], None]:
    """All calls in turn, ``count`` times."""

    def run() -> None:
        for _ in range(count):
            for call in calls:
                call()

    return run


def cases() -> Iterator[Case]:
    """Every case makes 100 calls back to back, as a decode step does."""
    threads, operands = runtime.num_threads(), torch.randn(64)

    def arithmetic(steps: int) -> Call:
        return lambda: compiled.peak_arithmetic("float32", operands, steps)

    add_to = torch.randn(1 << 17)
    yield Case(
        f"{CALLS} empty jobs, {threads} shares each",
        ours=times(CALLS, arithmetic(0)),
        peers={"torch.add of 131072 numbers": times(CALLS, lambda: torch.add(add_to, 1.0))},
    )
    # Twelve vector multiply-adds a step: some 10 to 20 µs a share.
    operations = compiled.peak_arithmetic("float32", operands, 5000)
    yield Case(
        f"{CALLS} short jobs, {threads} shares of {operations / threads / 1e6:.1f} MFLOP each",
        ours=times(CALLS, arithmetic(5000)),
        flops=CALLS * operations,
    )
    x, weight = torch.randn(1, 1024).bfloat16(), torch.randn(4096, 1024).bfloat16()
    linear: Call = lambda: ops.linear(x, weight)  # noqa: E731
    # Small products are torch's alone; large ones leave its threads spinning.
    for size in (192, 512):
        yield in_turn(linear, size)


def in_turn(linear: Call, size: int) -> Case:
    """A decode layer of 8 MB in turn with a square product of torch's, beside each in a row."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    product: Call = lambda: torch.mm(a, b)  # noqa: E731
    return Case(
        f"{CALLS} decode layers [1, 1024] x [4096, 1024] bfloat16 and torch products of {size}, in turn",
        ours=times(CALLS, linear, product),
        peers={
            "all layers, then all products": lambda: (
                times(CALLS, linear)(),
                times(CALLS, product)(),
            ),
        },
        label="in turn",
        context=torch.inference_mode,
    )
