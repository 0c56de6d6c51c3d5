"""RMS norm: widths that fill vectors and that do not, rows apart, with and without a residual."""

from __future__ import annotations

from functools import partial

import torch

from tests.cuda.harness import FLOATS, UNIT, Case, Kernels, assert_close, generator

EPS = 1e-6


def run(
    name: str, dtype: torch.dtype, rows: int, width: int, residual: bool, gap: int, kernels: Kernels
) -> None:
    random = generator(name)
    x = torch.randn(rows, width + gap, generator=random).to(dtype)[:, :width]
    extra = torch.randn(rows, width + gap, generator=random).to(dtype)[:, :width]
    weight = torch.randn(width, generator=random).to(dtype)
    total = (x.double() + extra.double()).to(dtype) if residual else x
    out, out_total = (
        kernels.empty(rows, width, dtype=dtype),
        kernels.empty(rows, width, dtype=dtype),
    )
    kernels.compiled.rms_norm(
        kernels.put(x),
        kernels.put(extra) if residual else None,
        kernels.put(weight),
        EPS,
        out,
        out_total if residual else None,
    )
    exact = total.double()
    normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPS)
    # The norm is rounded, then its product with the weight; the rest is float32's. float16 has steps of
    # 2**-24 however small a value is.
    assert_close(
        kernels.get(out),
        normed * weight.double(),
        relative=2.1 * UNIT[dtype] + 1e-6,
        absolute=2**-25 * (1 + weight.abs().max().item()) if dtype is torch.float16 else 0.0,
    )
    if residual:
        assert torch.equal(kernels.get(out_total), total)


def _cases() -> list[Case]:
    made = []
    for dtype in FLOATS:
        for rows, width, residual, gap, core in [
            (3, 256, False, 0, True),
            (5, 3584, True, 0, True),
            (2, 8, False, 8, True),
            (4, 37, True, 3, True),  # nothing is aligned: an element at a time
            (1, 1, False, 0, True),
            (11, 128, True, 0, True),  # a warp a row, the last block's rows not all there
            (3, 16392, True, 8, False),  # more than threads hold at once: a second read
            (2, 16392, False, 0, False),
            (70, 1280, False, 0, False),
        ]:
            kind = str(dtype).removeprefix("torch.")
            name = f"{kind}-{rows}x{width}{'-residual' * residual}{f'-gap{gap}' if gap else ''}"
            made.append(Case(name, partial(run, name, dtype, rows, width, residual, gap), core))
    return made


CASES = _cases()
