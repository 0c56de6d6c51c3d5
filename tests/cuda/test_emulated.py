"""Every CUDA kernel beside float64, its own source run by the emulator under four schedules, with the race
detector on: a missing barrier, a wait for the wrong group or a read of what nobody wrote fails here."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda.harness import Case, Kernels, all_cases

pytestmark = pytest.mark.slow

# Order of threads, seed, and OS threads that share the blocks: several meet what is atomic between blocks.
SCHEDULES = [("first_in", 1, 1), ("last_in", 1, 2), ("random", 1, 2), ("random", 2, 2)]


def _params() -> list[Any]:
    return [
        pytest.param(case, id=f"{op}-{case.name}", marks=[] if case.core else [pytest.mark.sweep])
        for op, case in all_cases()
    ]


@pytest.mark.parametrize("case", _params())
def test_kernel(case: Case, kernels: Kernels) -> None:
    for order, seed, os_threads in SCHEDULES:
        kernels.compiled.set_emulation(order, seed, os_threads)
        case.run(kernels)
