"""Packing by rank and the way back: uneven and shared heads, strided tokens, memory of peers."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from tests.cuda.harness import FLOATS, UNIT, Case, Kernels, assert_close, generator

# head_offsets, heads, H
EVEN = ([0, 2, 4], [0, 1, 2, 3], 4)
UNEVEN = ([0, 3, 3, 4, 7], [0, 1, 2, 3, 4, 5, 6], 7)  # a rank has none
SHARED = ([0, 1, 2, 3, 4], [0, 0, 1, 1], 2)  # two key heads, four ranks
FUSED = ([0, 4, 8], [0, 1, 4, 6, 2, 3, 4, 5], 8)  # in the order of ranks; 4 twice, 7 nowhere
SHARDS = {"even": EVEN, "uneven": UNEVEN, "shared": SHARED, "fused": FUSED}


def packed(x: Tensor, offsets: list[int], heads: list[int]) -> list[Tensor]:
    """Each rank's ``[T, heads of the rank, D]``."""
    return [x[:, heads[a:b]] for a, b in pairwise(offsets)]


def summed(parts: list[Tensor], offsets: list[int], heads: list[int], count: int) -> Tensor:
    """float64 ``[T, H, D]``."""
    out = torch.zeros(parts[0].shape[0], count, parts[0].shape[2], dtype=torch.float64)
    for p, part in enumerate(parts):
        out.index_add_(1, torch.tensor(heads[offsets[p] : offsets[p + 1]]).long(), part.double())
    return out


def run(
    name: str, dtype: torch.dtype, kind: str, tokens: int, dim: int, gap: int, kernels: Kernels
) -> None:
    random = generator(name)
    offsets, heads, count = SHARDS[kind]
    x = torch.randn(tokens, count, dim + gap, generator=random).to(dtype)[:, :, :dim]
    expected = packed(x, offsets, heads)
    out = kernels.empty(tokens * len(heads), dim, dtype=dtype)
    kernels.compiled.all_to_all_pack(kernels.put(x), offsets, heads, out, [], 0)
    assert torch.equal(kernels.get(out), torch.cat([part.flatten(0, 1) for part in expected]))

    send = torch.randn(tokens * len(heads), dim, generator=random).to(dtype)
    parts = [
        send[tokens * a : tokens * b].reshape(tokens, b - a, dim) for a, b in pairwise(offsets)
    ]
    back = kernels.empty(tokens, count, dim, dtype=dtype)
    kernels.compiled.all_to_all_unpack(kernels.put(send), offsets, heads, back, [], 0)
    exact = summed(parts, offsets, heads, count)
    # A copy is exact; a sum of two is rounded once.
    assert_close(kernels.get(back), exact, relative=UNIT[dtype])


def run_peers(name: str, dtype: torch.dtype, kind: str, dim: int, kernels: Kernels) -> None:
    """Two ranks' tokens, 3 and 5, written into each peer's buffer of 8, and read back from there."""
    random = generator(name)
    offsets, heads, count = SHARDS[kind]
    x = torch.randn(8, count, dim, generator=random).to(dtype)
    buffers = [kernels.empty(8, max(b - a, 1), dim, dtype=dtype) for a, b in pairwise(offsets)]
    addresses = [buffer.data_ptr() for buffer in buffers]
    assert all(address % 16 == 0 for address in addresses)
    for first, end in ((0, 3), (3, 8)):
        mine = kernels.put(x[first:end].clone())
        kernels.compiled.all_to_all_pack(mine, offsets, heads, None, addresses, first)
    for buffer, part in zip(buffers, packed(x, offsets, heads), strict=True):
        if part.shape[1] > 0:
            assert torch.equal(kernels.get(buffer), part)
    out = kernels.empty(5, count, dim, dtype=dtype)
    kernels.compiled.all_to_all_unpack(None, offsets, heads, out, addresses, 3)
    exact = summed([part[3:] for part in packed(x, offsets, heads)], offsets, heads, count)
    assert_close(kernels.get(out), exact, relative=UNIT[dtype])


def _cases() -> list[Case]:
    made = []
    for dtype in FLOATS:
        dt = str(dtype).removeprefix("torch.")
        for kind, tokens, dim, gap, core in [
            ("even", 9, 128, 0, True),
            ("uneven", 5, 64, 8, True),
            ("shared", 3, 264, 0, True),  # a row takes the lanes of a warp more than once
            ("fused", 11, 20, 1, True),  # nothing is aligned
            ("fused", 150, 128, 0, False),
        ]:
            name = f"{dt}-{kind}-{tokens}x{dim}{f'-gap{gap}' if gap else ''}"
            made.append(Case(name, partial(run, name, dtype, kind, tokens, dim, gap), core))
        for kind in ("even", "fused"):
            name = f"{dt}-{kind}-peers"
            made.append(Case(name, partial(run_peers, name, dtype, kind, 32), core=True))
    return made


CASES = _cases()
