"""The gate: halves of one matrix as in a fused layer, tensors without gaps, single elements, extremes."""

from __future__ import annotations

from functools import partial

import torch

from tests.cuda.harness import FLOATS, UNIT, Case, Kernels, assert_close, generator


def run(
    name: str, dtype: torch.dtype, rows: int, width: int, halves: bool, kernels: Kernels
) -> None:
    random = generator(name)
    both = torch.randn(rows, 2 * width, generator=random).mul(4)
    both[0, 0], both[0, width - 1] = -500.0, 500.0  # exp(500) is infinite: still 0 and 500
    both = both.to(dtype)
    gate, up = both[:, :width], both[:, width:]
    if not halves:
        gate, up = gate.contiguous(), up.contiguous()
    out = kernels.empty(rows, width, dtype=dtype)
    kernels.compiled.silu_mul(kernels.put(gate), kernels.put(up), out)
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    # One rounding; float32's exp, sum, quotient and product beside it, exp at arguments up to some 20.
    assert_close(
        kernels.get(out), exact, relative=UNIT[dtype] + 4e-6, absolute=UNIT[dtype] * 2**-13
    )


def _cases() -> list[Case]:
    made = []
    for dtype in FLOATS:
        for rows, width, halves, core in [
            (3, 64, True, True),
            (2, 4104, True, True),  # two blocks a row in 16 bits, the second nearly empty
            (5, 136, False, True),  # one row of 680
            (4, 37, True, True),  # nothing is aligned
            (1, 1, False, True),
            (2, 18944, True, False),
        ]:
            kind = str(dtype).removeprefix("torch.")
            name = f"{kind}-{rows}x{width}{'-halves' * halves}"
            made.append(Case(name, partial(run, name, dtype, rows, width, halves), core))
    return made


CASES = _cases()
