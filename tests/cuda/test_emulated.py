"""Every CUDA kernel beside float64, its own source run by the emulator under four schedules (two of them in
the sweep), with the race detector on: a missing barrier, a wait for the wrong group or a read of what nobody
wrote fails here."""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import Any

import pytest

from tests.cuda.harness import Case, Kernels, all_cases

pytestmark = pytest.mark.slow

# Order of threads, seed, and OS threads that share the blocks: several meet what is atomic between blocks.
Schedule = tuple[str, int, int]
SCHEDULES: list[Schedule] = [
    ("first_in", 1, 1), ("last_in", 1, 2), ("random", 1, 2), ("random", 2, 2),
]  # fmt: skip


def schedules(case: Case) -> list[Schedule]:
    """All of them for a core case; for one of the sweep two, an order and a seed, by its name's checksum."""
    return SCHEDULES if case.core else SCHEDULES[zlib.crc32(case.name.encode()) % 2 :: 2]


def _params() -> list[Any]:
    return [
        pytest.param(case, id=f"{op}-{case.name}", marks=[] if case.core else [pytest.mark.sweep])
        for op, case in all_cases()
    ]


@pytest.mark.parametrize("case", _params())
def test_kernel(case: Case, kernels: Kernels) -> None:
    for order, seed, os_threads in schedules(case):
        kernels.compiled.set_emulation(order, seed, os_threads)
        case.run(kernels)


def test_the_sweep_meets_every_schedule_with_every_op() -> None:
    met: dict[str, set[Schedule]] = defaultdict(set)
    for op, case in all_cases():
        if not case.core:
            met[op].update(schedules(case))
    assert all(found == set(SCHEDULES) for found in met.values()), met
