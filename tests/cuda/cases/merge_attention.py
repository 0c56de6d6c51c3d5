"""Merge of attention: rows that fill lanes and that do not, sets without keys, lse beyond exp's range."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.cuda.harness import FLOATS, UNIT, Case, Kernels, assert_close, generator


def exact(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The definition in float64; 0 and -inf where neither set has a key."""
    lse = torch.logsumexp(torch.stack((lse_a, lse_b)).double(), dim=0)
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    wa, wb = ((x.double() - safe).exp().T[..., None] for x in (lse_a, lse_b))
    return wa * out_a.double() + wb * out_b.double(), lse


def run(name: str, dtype: torch.dtype, tokens: int, heads: int, dim: int, kernels: Kernels) -> None:
    random = generator(name)
    out_a, out_b = torch.randn(2, tokens, heads, dim, generator=random).to(dtype).unbind(0)
    lse_a, lse_b = torch.randn(2, heads, tokens, generator=random).mul(3).unbind(0)
    rows = torch.arange(heads * tokens).reshape(heads, tokens)
    lse_a[rows % 5 == 1] = -torch.inf
    lse_b[rows % 7 == 2] = -torch.inf
    lse_a[rows % 11 == 3] = 3e38  # exp of either would overflow: only their difference counts
    lse_b[rows % 11 == 4] = -3e38
    out = kernels.empty(tokens, heads, dim, dtype=dtype)
    lse = kernels.empty(heads, tokens, dtype=torch.float32)
    inputs = (out_a, lse_a, out_b, lse_b)
    kernels.compiled.merge_attention(*map(kernels.put, inputs), out, lse)
    expected, expected_lse = exact(*inputs)
    # One rounding; weights to float32's precision, where terms of opposite sign may cancel.
    assert_close(kernels.get(out), expected, relative=UNIT[dtype] + 1e-6, absolute=4e-6)
    assert_close(kernels.get(lse), expected_lse, relative=2e-7, absolute=1e-6)


def _cases() -> list[Case]:
    made = []
    for dtype in FLOATS:
        for tokens, heads, dim, core in [
            (37, 3, 128, True),  # the last block's groups lack tokens
            (5, 2, 20, True),  # in 16 bits nothing is aligned
            (3, 1, 264, True),  # a row takes the lanes of a warp more than once
            (1, 1, 1, True),
            (150, 28, 128, False),
            (70, 5, 96, False),  # lanes without a vector
        ]:
            kind = str(dtype).removeprefix("torch.")
            name = f"{kind}-{tokens}x{heads}x{dim}"
            made.append(Case(name, partial(run, name, dtype, tokens, heads, dim), core))
    return made


CASES = _cases()
