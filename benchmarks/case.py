"""What a benchmark is made of: a ``Case`` of ours and its peers, on inputs that do not lie in the caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle
from typing import TypeVar

from .machine import largest_cache

T = TypeVar("T")
Call = Callable[[], object]
LIMIT = "limit"


@dataclass(frozen=True)
class Case:
    """One row of a benchmark: the same work by us and by others, timed in turn.

    Attributes:
        name: what is computed, with its shape and dtype, as ``"[1, 3584] x [3584, 3584] bfloat16"``.
        ours: our call. What it needs is made beforehand: only the call is timed.
        peers: others' calls by name, each for the same result.
        flops: floating-point (or integer) operations of one call, a multiply-add counting two; 0 where
            arithmetic is not the limit.
        bytes: what one call must move at least, each input read once and each output written once; 0
            where it all lies in the caches. Or a function that says so, called behind the timing.
        dtype: whose peak bounds the arithmetic: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        label: our contestant's name.
        check: raises an ``AssertionError`` that says what differs and by how much where ours is wrong;
            runs once, before the timing.
        context: what the calls run in, as ``torch.inference_mode``.
        targets: least ratio to a peer, by its name: its time over ours; or, by ``LIMIT``, least share of what
            the machine could do. What falls short is a miss in the results.
        rounds: timings a contestant.
        slow: left out by ``--quick``.
    """

    name: str
    ours: Call
    peers: Mapping[str, Call] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float | Callable[[], float] = 0.0
    dtype: str = "float32"
    label: str = "ours"
    check: Callable[[], None] | None = None
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    targets: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 9
    slow: bool = False

    @property
    def moved(self) -> float:
        """``bytes`` as a number."""
        return self.bytes() if callable(self.bytes) else self.bytes


def rotated(make: Callable[[], T], size: float, copies: int | None = None) -> Callable[[], T]:
    """A function that returns another of several inputs at each call, so that none is still in a cache.

    Args:
        make: makes one input, of random numbers.
        size: bytes of one input.
        copies: how many; by default enough to fill the last-level cache twice.
    """
    if copies is None:
        copies = min(256, max(2, -(-2 * largest_cache() // max(1, int(size)))))
    return cycle([make() for _ in range(copies)]).__next__
