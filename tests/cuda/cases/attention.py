"""Attention beside float64: sequences, masks, shared heads, rotations, head dims, strides, partial results.

The bound is the project's: at most twice the error of torch's own attention of the same precision (here in
its order of operations, on the CPU), plus a rounding of the largest result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from afnext.ops import reference
from tests.cuda.harness import HALVES, UNIT, Case, Kernels, generator

NONE = (-1, -1)


@dataclass(frozen=True)
class Problem:
    """What distinguishes one call from another."""

    queries: tuple[int, ...] = (150,)  # of each sequence
    keys: tuple[int, ...] | None = None  # those of the queries by default
    heads: tuple[int, int] = (2, 2)  # of q, of k and v
    dim: int = 64
    causal: bool = False
    window: tuple[int, int] = NONE
    lengths: tuple[int, ...] | None = None
    rotation: str = ""  # "half" or "interleaved"
    turned: int | None = None  # channels, by default all
    partials: bool = False
    scale: float | None = None
    gap: int = 0  # elements between heads
    shift: int = 0  # elements by which out begins behind a multiple of 16 bytes
    dtype: torch.dtype = torch.bfloat16
    sm: int = 80  # of the GPU that the emulator plays: those of 90 have a kernel of their own


def offsets(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, args: tuple[Any, ...]) -> Tensor:
    """The reference's lines with every product and the softmax rounded to q's dtype, turned beforehand."""
    cu_q, cu_k, lengths, times_q, times_k, inv_freq, interleaved, *policies = args
    if inv_freq is not None:
        q = reference.rotate(q, times_q, inv_freq, None, interleaved, False)
        k = reference.rotate(k, times_k, inv_freq, None, interleaved, False)
    unturned = (cu_q, cu_k, lengths, None, None, None, False, *policies)
    return reference.attention(q, k, v, *unturned, compute_dtype=q.dtype)[0]


def run(name: str, problem: Problem, kernels: Kernels) -> None:
    random = generator(name)
    keys = problem.keys or problem.queries
    dtype, dim = problem.dtype, problem.dim

    def heads(tokens: int, count: int) -> Tensor:
        wide = torch.randn(tokens, count, dim + problem.gap, generator=random)
        return wide.to(dtype)[:, :, :dim]

    q = heads(sum(problem.queries), problem.heads[0])
    k, v = heads(sum(keys), problem.heads[1]), heads(sum(keys), problem.heads[1])
    times_q = times_k = inv_freq = None
    if problem.rotation:
        times_q = torch.rand(q.shape[0], generator=random) * 1000
        times_k = torch.rand(k.shape[0], generator=random) * 1000
        half = (problem.turned or dim) // 2
        inv_freq = 1e4 ** -(torch.arange(half) / half)
    if kernels.emulated and problem.sm == 80:
        kernels.compiled.set_emulated_device(problem.sm)
    cu_q, cu_k = offsets(problem.queries), offsets(keys)
    several = len(problem.queries) > 1
    lengths = None
    if problem.lengths is not None:
        lengths = torch.tensor(problem.lengths, dtype=torch.int32)
    scale = dim**-0.5 if problem.scale is None else problem.scale
    policies = (
        problem.rotation == "interleaved", problem.causal, *problem.window, scale,
    )  # fmt: skip

    out_dtype = torch.float32 if problem.partials else dtype
    out = kernels.empty(*q.shape, dtype=out_dtype, shift=problem.shift)
    lse = kernels.empty(q.shape[1], q.shape[0], dtype=torch.float32)
    kernels.compiled.attention(
        kernels.put(q), kernels.put(k), kernels.put(v),
        cu_q if several else None, cu_k if several else None, lengths,
        kernels.put(times_q), kernels.put(times_k), kernels.put(inv_freq),
        *policies, out, lse,
    )  # fmt: skip

    args = (cu_q, cu_k, lengths, times_q, times_k, inv_freq, *policies, False)
    exact, exact_lse = reference.attention(q.double(), k.double(), v.double(), *args)
    own = torch_attention(q, k, v, args).double()
    floor = UNIT[dtype] * max(exact.abs().max().item(), 1e-3)
    got, got_lse = kernels.get(out).double(), kernels.get(lse).double()
    error, allowed = (got - exact).abs().max().item(), 2 * (own - exact).abs().max().item() + floor
    assert error <= allowed, f"out is {error:.3g} off, torch's own {allowed:.3g} (with its floor)"
    empty = exact_lse.isinf()
    assert torch.equal(got_lse.isinf(), empty)
    assert not got.transpose(0, 1)[empty].any(), "a query that sees no key gives 0"
    off = (got_lse - exact_lse)[~empty].abs()
    # Rounded operands where they turn, float32's sums of exact products where they do not.
    bound = max(8 * UNIT[dtype], 2e-6) if problem.rotation else 2e-5
    assert not off.numel() or off.max().item() <= bound, f"lse is {off.max().item():.3g} off"


CORE = {
    "one": Problem(),
    "causal": Problem(causal=True, dim=128, heads=(2, 1)),
    "ragged": Problem(
        queries=(37, 1, 0, 130), keys=(40, 64, 3, 130), causal=True, heads=(7, 1), dim=128
    ),
    "window": Problem(queries=(200,), window=(17, 5), heads=(2, 1)),
    "window-causal": Problem(queries=(190, 65), window=(40, -1), causal=True),
    "lengths": Problem(queries=(20, 33, 5), keys=(50, 33, 64), lengths=(31, 0, 64), causal=True),
    "half-split": Problem(queries=(70,), causal=True, rotation="half", heads=(4, 2), dim=128),
    "interleaved": Problem(queries=(40, 29), rotation="interleaved", turned=48),
    "partials": Problem(queries=(5,), keys=(100,), partials=True, heads=(8, 1), dim=128),
    "dim-80": Problem(queries=(66,), dim=80, rotation="half", causal=True),
    "dim-36-unaligned": Problem(queries=(33,), dim=36, causal=True, gap=1),
    "shifted-out": Problem(queries=(33,), shift=1),
    "negative-scale": Problem(queries=(40,), scale=-0.2),
    "zero-scale": Problem(queries=(9,), keys=(50,), scale=0.0),
    "float32": Problem(queries=(19, 40), causal=True, rotation="half", dtype=torch.float32),
    "float32-partial-turn": Problem(
        queries=(9,), dim=33, rotation="half", turned=10, dtype=torch.float32, heads=(4, 2)
    ),
}


def by_dim(dims: tuple[int, ...]) -> dict[str, Problem]:
    """Every dim with every way to share heads, causal every other time: each dim and each way meet both."""
    return {
        f"dim-{dim}-{heads[0]}-{heads[1]}{'-causal' * causal}": Problem(
            queries=(129, 65, 31), dim=dim, causal=causal, heads=heads, rotation="half"
        )
        for i, dim in enumerate(dims)
        for j, heads in enumerate(((1, 1), (7, 1), (8, 2)))
        for causal in ((i + j) % 2 == 1,)
    }


LONG = by_dim((32, 64, 96, 112, 128, 160, 192, 256)) | {
    "strided": Problem(queries=(130,), gap=16, heads=(8, 2), causal=True),
    "long": Problem(queries=(700,), causal=True, rotation="interleaved", dim=128),
    "no-keys": Problem(queries=(7, 3), keys=(0, 4)),
}


def _cases() -> list[Case]:
    made = []
    for problems, core in ((CORE, True), (LONG, False)):
        for name, problem in problems.items():
            for dtype in (problem.dtype,) if problem.dtype == torch.float32 else HALVES:
                changed = Problem(**{**vars(problem), "dtype": dtype})
                full = f"{name}-{str(dtype).removeprefix('torch.')}"
                core_dtype = dtype != torch.float16 or name in ("ragged", "half-split")
                made.append(Case(full, partial(run, full, changed), core and core_dtype))
    return made


CASES = _cases()
