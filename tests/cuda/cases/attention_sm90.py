"""Attention by the kernel for Hopper (head dims 64 and 128, 16 bits), held to the same bound as the other:
tiles that masks cut and that they don't, several items a block, sequences that end inside a tile."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from tests.cuda.cases.attention import Problem, by_dim, offsets, run
from tests.cuda.harness import HALVES, Case, Kernels, generator

HOPPER = 90
MULTIPROCESSORS = 2  # so that blocks have several items


def run_hopper(name: str, problem: Problem, kernels: Kernels, serves: bool = True) -> None:
    if kernels.emulated:
        kernels.compiled.set_emulated_device(HOPPER, MULTIPROCESSORS)
        before = kernels.compiled.emulation_counters()["warpgroup_products"]
    run(name, problem, kernels)
    if kernels.emulated:
        after = kernels.compiled.emulation_counters()["warpgroup_products"]
        assert (after > before) == serves, "another kernel has served"


def run_beside_nan(dtype: torch.dtype, dim: int, kernels: Kernels) -> None:
    """What lies in a tile behind a sequence's last key, NaN or zeros, changes no bit."""
    if kernels.emulated:
        kernels.compiled.set_emulated_device(HOPPER, MULTIPROCESSORS)
    random = generator(f"{dtype}-{dim}")
    queries, keys, lengths = (70, 40), (150, 90), (131, 50)
    q = torch.randn(sum(queries), 2, dim, generator=random).to(dtype)
    k, v = (torch.randn(sum(keys), 1, dim, generator=random).to(dtype) for _ in range(2))
    results = []
    for fill in (0.0, float("nan")):
        for tensor in (k, v):
            tensor[lengths[0] : keys[0]] = fill
            tensor[keys[0] + lengths[1] :] = fill
        out = kernels.empty(*q.shape, dtype=dtype)
        lse = kernels.empty(q.shape[1], q.shape[0], dtype=torch.float32)
        kernels.compiled.attention(
            kernels.put(q), kernels.put(k), kernels.put(v),
            offsets(queries), offsets(keys), torch.tensor(lengths, dtype=torch.int32),
            None, None, None, False, False, -1, -1, dim**-0.5, out, lse,
        )  # fmt: skip
        results.append((kernels.get(out), kernels.get(lse)))
    (out, lse), (out_beside_nan, lse_beside_nan) = results
    assert torch.equal(out, out_beside_nan)
    assert torch.equal(lse, lse_beside_nan)


CORE = {
    "one": Problem(),
    "causal": Problem(queries=(300,), causal=True, dim=128),
    "ragged": Problem(
        queries=(37, 1, 0, 130), keys=(40, 64, 3, 400), causal=True, heads=(7, 1), dim=128
    ),
    "window": Problem(queries=(330,), window=(100, 40)),
    # All but the last key of a tile, and all but its first for the last query.
    "tile-end": Problem(queries=(64,), keys=(255,)),
    "tile-begin": Problem(queries=(64,), keys=(300,), window=(170, -1)),
    "lengths": Problem(
        queries=(20, 33, 5), keys=(150, 33, 64), lengths=(131, 0, 64), causal=True, heads=(4, 1)
    ),
    "half-split": Problem(queries=(170,), causal=True, rotation="half", heads=(4, 2), dim=128),
    "interleaved": Problem(queries=(40, 29), rotation="interleaved", turned=48, heads=(3, 1)),
    "interleaved-odd": Problem(queries=(40,), rotation="interleaved", turned=46, dim=128),
    # The first tile visited has 18 keys: those of the next are far above its top.
    "raised": Problem(queries=(40,), keys=(530,), scale=0.7, dim=128),
    "raised-64": Problem(queries=(40,), keys=(530,), scale=1.0, heads=(4, 1)),
    "partials": Problem(queries=(5,), keys=(700,), partials=True, heads=(8, 1), dim=128),
}
LONG = by_dim((64, 128)) | {
    "strided": Problem(queries=(130,), gap=16, heads=(8, 2), causal=True),
    "long": Problem(queries=(900,), causal=True, rotation="interleaved", dim=128),
    "long-window": Problem(queries=(900,), window=(200, 0), heads=(2, 1)),
}


def _cases() -> list[Case]:
    made = []
    for problems, core in ((CORE, True), (LONG, False)):
        for name, problem in problems.items():
            for dtype in HALVES:
                full = f"{name}-{str(dtype).removeprefix('torch.')}"
                changed = Problem(**{**vars(problem), "dtype": dtype, "sm": HOPPER})
                core_dtype = dtype == torch.bfloat16 or name == "ragged"
                made.append(Case(full, partial(run_hopper, full, changed), core and core_dtype))
    odd = Problem(queries=(70,), causal=True, rotation="half", turned=46, sm=HOPPER)
    shifted = Problem(queries=(70,), causal=True, shift=1, sm=HOPPER)
    others = {
        "odd-halves": odd,
        "shifted-out": shifted,
        "shifted-partials": replace(shifted, partials=True),
    }
    for name, problem in others.items():
        made.append(Case(name, partial(run_hopper, name, problem, serves=False)))
    for dtype, dim in ((torch.bfloat16, 128), (torch.float16, 64)):
        made.append(Case(f"beside-nan-{dim}", partial(run_beside_nan, dtype, dim)))
    return made


CASES = _cases()
