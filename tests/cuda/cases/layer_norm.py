"""Layer norm: widths that fill vectors and that do not, rows apart, means of rows, rows that do not exist."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cuda.harness import FLOATS, UNIT, Case, Kernels, assert_close, generator

EPS = 1e-5


def layer_norm(
    kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor, pooled: Tensor | None
) -> Tensor:
    shape = x.shape if pooled is None else (len(pooled), x.shape[-1])
    out = kernels.empty(*shape, dtype=x.dtype)
    put = kernels.put
    kernels.compiled.layer_norm(put(x), put(weight), put(bias), EPS, put(pooled), out)
    return kernels.get(out)


def run(
    name: str,
    dtype: torch.dtype,
    rows: int,
    width: int,
    pool: int,
    gap: int,
    mean: float,
    kernels: Kernels,
) -> None:
    random = generator(name)
    x = (torch.randn(rows, width + gap, generator=random) + mean).to(dtype)[:, :width]
    weight, bias = (torch.randn(width, generator=random).to(dtype) for _ in range(2))
    pooled = torch.randint(rows, (rows + 3, pool), generator=random) if pool else None
    t = x.double() if pooled is None else x.double()[pooled].mean(1)
    exact = F.layer_norm(t, (width,), weight.double(), bias.double(), EPS)
    # One rounding to the dtype; before it float32's, of values of about 10. A mean far from zero costs
    # nothing: deviations are exact differences.
    ours = layer_norm(kernels, x, weight, bias, pooled)
    assert_close(ours, exact, relative=1.01 * UNIT[dtype] + 1e-6, absolute=5e-6)


def rows_that_do_not_exist(kernels: Kernels) -> None:
    """Their means are NaN, nothing is read beyond x, and rows beside them do not notice."""
    x, weight, bias = (
        torch.randn(5, 24, generator=generator("rows")),
        torch.ones(24),
        torch.zeros(24),
    )
    pooled = torch.tensor([[0, 1], [4, 5], [-1, 2], [3, 4], [1 << 40, 0]])
    out = layer_norm(kernels, x, weight, bias, pooled)
    assert out[[1, 2, 4]].isnan().all()
    assert torch.equal(out[[0, 3]], layer_norm(kernels, x, weight, bias, pooled[[0, 3]]))
    assert layer_norm(kernels, x[:0], weight, bias, pooled).isnan().all()


def not_finite(kernels: Kernels) -> None:
    x, weight, bias = (
        torch.randn(6, 40, generator=generator("nan")),
        torch.ones(40),
        torch.zeros(40),
    )
    clean = layer_norm(kernels, x, weight, bias, None)
    x[2, 7], x[4, 0] = float("nan"), float("inf")
    spoilt = layer_norm(kernels, x, weight, bias, None)
    assert spoilt[[2, 4]].isnan().all()
    assert torch.equal(spoilt[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def _cases() -> list[Case]:
    made = [
        Case("rows that do not exist", rows_that_do_not_exist),
        Case("not finite", not_finite),
    ]
    for dtype in FLOATS:
        for rows, width, pool, gap, mean, core in [
            (9, 1280, 0, 0, 0.0, True),
            (11, 1280, 2, 0, 0.0, True),
            (3, 1288, 2, 8, 0.0, True),  # more than a lane keeps
            (4, 37, 3, 3, 0.0, True),  # nothing is aligned: an element at a time
            (1, 1, 0, 0, 0.0, True),
            (2, 1300, 1, 1, 0.0, False),
            (70, 704, 2, 0, 0.0, False),
            (4, 1000, 0, 0, 100.0, True),
            (4, 2000, 0, 0, 1e4, False),
        ]:
            kind = str(dtype).removeprefix("torch.")
            name = f"{kind}-{rows}x{width}-pool{pool}-gap{gap}-mean{mean:g}"
            made.append(Case(name, partial(run, name, dtype, rows, width, pool, gap, mean), core))
    return made


CASES = _cases()
