"""Every CUDA kernel beside float64, its own source run by the emulator under schedules of threads, with the
race detector on: a missing barrier, a wait for the wrong group or a read of what nobody wrote fails here.

A core case runs under two of the four schedules, and under the other two in the sweep, where any other case
runs under two, and with ``make test-all`` under all four."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.cuda.harness import Case, Kernels, all_cases

pytestmark = pytest.mark.slow

# Order of threads, seed, and OS threads that share the blocks: several meet what is atomic between blocks.
Schedule = tuple[str, int, int]
SCHEDULES: list[Schedule] = [
    ("first_in", 1, 1), ("last_in", 1, 2), ("random", 1, 2), ("random", 2, 2),
]  # fmt: skip


def pairs(case: Case) -> list[list[Schedule]]:
    """An order and a seed, and what is left; which pair is first, its name's checksum says."""
    first = zlib.crc32(case.name.encode()) % 2
    return [SCHEDULES[first::2], SCHEDULES[1 - first :: 2]]


def _params() -> Iterator[Any]:
    for op, case in all_cases():
        first, other = pairs(case)
        sweep = [pytest.mark.sweep]
        yield pytest.param(case, first, id=f"{op}-{case.name}", marks=[] if case.core else sweep)
        again = sweep if case.core else [*sweep, pytest.mark.long]
        yield pytest.param(case, other, id=f"{op}-{case.name}-again", marks=again)


@pytest.mark.parametrize(("case", "schedules"), _params())
def test_kernel(case: Case, schedules: list[Schedule], kernels: Kernels) -> None:
    for order, seed, os_threads in schedules:
        kernels.begin(order, seed, os_threads)
        case.run(kernels)


def test_a_case_finds_the_same_device_whatever_was_before(kernels: Kernels) -> None:
    kernels.compiled.set_emulated_device(75)  # which no kernel takes
    kernels.begin()
    x = kernels.put(torch.ones(2, 8))
    out = kernels.empty(2, 8, dtype=torch.float32)
    kernels.compiled.rms_norm(x, None, kernels.put(torch.ones(8)), 1e-6, out, None)


def test_either_pair_is_first_for_some_cases_of_every_op() -> None:
    """So that all schedules are met by an op's core cases, and by its others."""
    met: dict[tuple[str, bool], set[Schedule]] = defaultdict(set)
    for op, case in all_cases():
        met[op, case.core].update(pairs(case)[0])
    assert all(found == set(SCHEDULES) for found in met.values()), met
