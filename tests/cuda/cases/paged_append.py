"""New tokens to their pages: bit for bit where nothing turns, within a rounding where keys turn or pages are
of 8 bits; no other byte is touched."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from afnext.ops import reference
from tests.cuda.cases.paged_cache import (
    BYTES,
    LARGEST,
    Pages,
    assert_refused,
    empty_pages,
    int32,
    offsets,
    turned,
    write_word,
)
from tests.cuda.harness import FLOATS, UNIT, Case, Kernels, assert_close, generator

BEFORE, NEW = [5, 0, 40, 16], [9, 0, 1, 17]


def append(
    kernels: Kernels, k: Tensor, v: Tensor, pages: Pages, times: Tensor | None, inv_freq: Tensor | None,
    interleaved: bool,
) -> Pages:  # fmt: skip
    arrays = [kernels.put(t) for t in (pages.k, pages.v, pages.k_scales, pages.v_scales)]
    kernels.compiled.paged_append(
        kernels.put(k), kernels.put(v), *arrays[:2], pages.table, offsets(NEW), int32(BEFORE),
        kernels.put(times), kernels.put(inv_freq), interleaved, *arrays[2:],
    )  # fmt: skip
    got = [None if a is None else kernels.get(a) for a in arrays]
    assert got[0] is not None
    assert got[1] is not None
    return Pages(got[0], got[1], got[2], got[3], pages.table, pages.lengths)


def run(
    name: str, dtype: torch.dtype, kind: torch.dtype | None, dim: int, slots: int, turns: bool,
    interleaved: bool, gap: int, kernels: Kernels,
) -> None:  # fmt: skip
    random, heads, kind = generator(name), 3, kind or dtype
    totals = [a + b for a, b in zip(BEFORE, NEW, strict=True)]
    pages = empty_pages(random, totals, heads, slots, dim, kind)
    wide = torch.randn(2, sum(NEW), heads, dim + gap, generator=random).to(dtype)
    k, v = (t[..., :dim] for t in wide)
    if kind in BYTES:
        k[0, 0], v[1, 1] = 0.0, 6e4 if dtype == torch.float16 else 1e30
    times = torch.rand(len(k), generator=random) * 1e6 if turns else None
    inv_freq = 10.0 ** -torch.linspace(0, 4, dim // 2) if turns else None
    got = append(kernels, k, v, pages, times, inv_freq, interleaved)
    wanted = {"k": k.double(), "v": v.double()}
    if times is not None and inv_freq is not None:
        wanted["k"] = turned(k, times, inv_freq, interleaved)
    ends = offsets(NEW).tolist()
    for which, rows in wanted.items():
        for n, before in enumerate(BEFORE):
            held, truth = got.held(which, n), rows[ends[n] : ends[n + 1]]
            if kind in BYTES:
                peak = truth.abs().amax(-1, keepdim=True)
                # int8: half a step; e4m3: half of an eighth of the value, or of the smallest step. And
                # float32: of the scale, its inverse, the rotation.
                step = 0.5 / 127 if kind == torch.int8 else 2.0**-10 / LARGEST[kind]
                relative = 0.0 if kind == torch.int8 else 2.0**-4
                error = (held[before:] - truth).abs()
                assert (error <= relative * truth.abs() + peak * (step + 1e-6)).all()
            elif turns and which == "k":
                # Rounded once; phases of float32 times are exact to 1e-6, pairs are up to 6 long.
                assert_close(held[before:], truth, relative=1.01 * UNIT[dtype], absolute=1e-5)
            else:
                assert torch.equal(held[before:], truth)
        # And nowhere else.
        after, marks = getattr(got, which), getattr(got, f"{which}_scales")
        untouched = after.double().isnan() if marks is None else marks.isnan()
        size = sum(NEW) * heads * (dim if marks is None else 1)
        assert int((~untouched).sum()) == size
        if kind == torch.int8:
            assert (after[marks.isnan()] == 77).all()


def planned(name: str, kernels: Kernels) -> None:
    """Through a plan, whose tensors are longer and whose times are integers, the same bytes as by a call."""
    random, heads, slots, dim = generator(name), 3, 16, 64
    totals = [a + b for a, b in zip(BEFORE, NEW, strict=True)]
    pages = empty_pages(random, totals, heads, slots, dim, torch.int8)
    k, v = torch.randn(2, sum(NEW) + 5, heads, dim, generator=random).bfloat16()
    times, inv_freq = torch.randint(0, 10**6, (len(k),), generator=random), torch.rand(dim // 2)
    now = slice(0, sum(NEW))
    wanted = append(kernels, k[now], v[now], pages, times[now].float(), inv_freq, False)
    held = ("k", "v", "k_scales", "v_scales")
    like = kernels.put(pages.k)
    plan = kernels.compiled.PagedAttentionPlan(like, heads, 6, 4, 20, 40, 8, True, -1, -1)
    plan.update(like, pages.table, offsets(NEW), int32(totals))

    def add(whole: Tensor) -> list[Any]:
        arrays = [kernels.put(getattr(pages, which)) for which in held]
        plan.append(
            kernels.put(k), kernels.put(v), *arrays[:2], kernels.put(whole), kernels.put(inv_freq),
            False, *arrays[2:],
        )  # fmt: skip
        return arrays

    for dtype in (torch.int64, torch.int32):
        for got, which in zip(add(times.to(dtype)), held, strict=True):
            truth = getattr(wanted, which)
            assert torch.equal(kernels.get(got).nan_to_num(-1), truth.nan_to_num(-1))
    plan.check(like)
    # PagedHeader::tokens: more than a captured launch has rows.
    write_word(kernels, plan, 6, 10_000)
    add(times)
    assert_refused("tokens of request 3 are more than", plan.check, like)


def nan(name: str, kind: torch.dtype, kernels: Kernels) -> None:
    """A row that held a NaN or an infinity reads as NaN, the others as they were."""
    random = generator(name)
    totals = [a + b for a, b in zip(BEFORE, NEW, strict=True)]
    pages = empty_pages(random, totals, 2, 4, 64, kind)
    k, v = torch.randn(2, sum(NEW), 2, 64, generator=random)
    k[3, 0, 5], v[4, 1, 60] = torch.nan, torch.inf
    got = append(kernels, k, v, pages, None, None, False)
    for which, token, head in (("k", 3, 0), ("v", 4, 1)):
        bad = got.held(which, 0)[BEFORE[0] :].isnan().any(-1)
        assert bad[token, head]
        assert int(bad.sum()) == 1


def tiny(name: str, dtype: torch.dtype, kind: torch.dtype, kernels: Kernels) -> None:
    """Rows of which float32 cannot tell the inverse of their scale are zeros, as in the reference, and rows a
    little larger are what it makes of them, to a step: it rounds the inverse twice."""
    random = generator(name)
    totals = [a + b for a, b in zip(BEFORE, NEW, strict=True)]
    pages = empty_pages(random, totals, 2, 16, 64, kind)
    k, v = torch.randn(2, sum(NEW), 2, 64, generator=random)
    # e4m3 begins to be told at 1.3e-36, int8 at 3.7e-37; below 1.2e-38 float32 has fewer bits.
    sizes = torch.tensor([1.0, 1e-35, 1e-36, 3e-37, 1e-38, 1e-40])
    for rows in (k, v):
        rows[..., ::7] = 0.0
        rows /= rows.abs().amax(-1, keepdim=True)
        rows *= sizes[torch.arange(len(rows)) % len(sizes)][:, None, None]
    k, v = k.to(dtype), v.to(dtype)
    expected = Pages(
        *(_copied(t) for t in (pages.k, pages.v, pages.k_scales, pages.v_scales)),
        pages.table,
        pages.lengths,
    )
    reference.paged_append(
        k, v, expected.k, expected.v, pages.table, offsets(NEW), int32(BEFORE), None, None, False,
        expected.k_scales, expected.v_scales,
    )  # fmt: skip
    got = append(kernels, k, v, pages, None, None, False)
    for which in ("k", "v"):
        marks, truth = getattr(got, f"{which}_scales"), getattr(expected, f"{which}_scales")
        torch.testing.assert_close(marks, truth, rtol=2e-7, atol=2e-45, equal_nan=True)
        written = ~truth.isnan()
        held, wanted = (getattr(p, which).double()[written] for p in (got, expected))
        step = 1.0 if kind == torch.int8 else wanted.abs() / 8 + 2.0**-9
        assert ((held - wanted).abs() <= step).all()
        lost = truth[written].double() < 1 / torch.finfo(torch.float32).max
        assert 0 < int(lost.sum()) < len(lost)
        assert not held[lost].any()
        assert (held[~lost].abs().amax(-1) == LARGEST[kind]).all()


def _copied(t: Tensor | None) -> Tensor:
    assert t is not None
    return t.clone()


def _cases() -> list[Case]:
    made = []
    for dtype in FLOATS:
        for kind in (None, *BYTES):
            for dim, slots, turns, interleaved, gap, core in [
                (128, 16, True, False, 0, True),
                (64, 1, True, True, 0, dtype == torch.bfloat16),
                (33, 8, False, False, 3, dtype == torch.float32),
                (256, 64, True, False, 0, False),
                (200, 128, True, True, 8, False),
                (8, 48, False, False, 0, False),
            ]:
                kinds = "-".join(str(t).removeprefix("torch.") for t in (dtype, kind) if t)
                name = f"{kinds}-{dim}-slots{slots}"
                test = partial(run, name, dtype, kind, dim, slots, turns, interleaved, gap)
                made.append(Case(name, test, core))
    made.append(Case("plan", partial(planned, "plan")))
    for kind in BYTES:
        name = f"nan-{str(kind).removeprefix('torch.')}"
        made.append(Case(name, partial(nan, name, kind)))
        for dtype in (torch.float32, torch.bfloat16):
            kinds = "-".join(str(t).removeprefix("torch.") for t in (dtype, kind))
            name = f"tiny-{kinds}"
            made.append(Case(name, partial(tiny, name, dtype, kind), dtype == torch.float32))
    return made


CASES = _cases()
