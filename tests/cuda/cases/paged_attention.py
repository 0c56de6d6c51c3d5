"""Attention over pages: decode and chunks of prefill, every page dtype, any page size, parts that are merged,
masks; the same bits in every batch; ids that are overwritten on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.cuda.cases.paged_cache import (
    Pages,
    assert_refused,
    attention,
    filled_pages,
    int32,
    offsets,
    turned,
    write_word,
)
from tests.cuda.harness import FLOATS, HALVES, UNIT, Case, Kernels, assert_close, generator


@dataclass(frozen=True)
class Batch:
    """What a case attends to."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    pages: torch.dtype | None = None  # None: as dtype
    kv_heads: int = 2
    group: int = 7
    dim: int = 128
    slots: int = 16
    causal: bool = True
    window: tuple[int, int] = (-1, -1)
    turned: bool = False
    interleaved: bool = False
    gap: int = 0  # elements between rows of q


@dataclass
class Inputs:
    q: Tensor
    pages: Pages
    times: Tensor | None
    inv_freq: Tensor | None


def inputs(name: str, b: Batch) -> Inputs:
    random = generator(name)
    heads = b.kv_heads * b.group
    q = torch.randn(sum(b.queries), heads, b.dim + b.gap, generator=random).to(b.dtype)
    pages = filled_pages(random, list(b.keys), b.kv_heads, b.slots, b.dim, b.pages or b.dtype)
    times = torch.rand(len(q), generator=random) * 1e6 if b.turned else None
    inv_freq = 10.0 ** -torch.linspace(0, 4, max(b.dim // 4, 1)) if b.turned else None
    return Inputs(q[..., : b.dim], pages, times, inv_freq)


def attend(kernels: Kernels, b: Batch, x: Inputs) -> tuple[Tensor, Tensor]:
    out, lse = attend_on_device(kernels, b, x)
    return kernels.get(out), kernels.get(lse)


def attend_on_device(kernels: Kernels, b: Batch, x: Inputs) -> tuple[Any, Any]:
    tokens, heads = x.q.shape[:2]
    out = kernels.empty(tokens, heads, b.dim, dtype=b.dtype)
    lse = kernels.empty(heads, tokens, dtype=torch.float32)
    p = x.pages
    kernels.compiled.paged_attention(
        *map(kernels.put, (x.q, p.k, p.v)), p.table, offsets(list(b.queries)), int32(p.lengths),
        kernels.put(x.times), kernels.put(x.inv_freq), b.interleaved, b.causal, *b.window,
        b.dim**-0.5, kernels.put(p.k_scales), kernels.put(p.v_scales), out, lse,
    )  # fmt: skip
    return out, lse


def expected(b: Batch, x: Inputs) -> tuple[Tensor, Tensor]:
    q = x.q
    if x.times is not None and x.inv_freq is not None:
        q = turned(q, x.times, x.inv_freq, b.interleaved).to(b.dtype)
    return attention(q, x.pages, list(b.queries), b.causal, b.window)


def check(b: Batch, x: Inputs, out: Tensor, lse: Tensor, tokens: slice = slice(None)) -> None:
    unit, (truth, truth_lse) = UNIT[b.dtype], expected(b, x)
    out, truth, lse, truth_lse = out[tokens], truth[tokens], lse[:, tokens], truth_lse[:, tokens]
    largest = max(float(x.pages.held("v", n).abs().max()) for n, k in enumerate(b.keys) if k > 0)
    # Probabilities (times the scale of 8-bit values; in float16 the scaled values) are rounded once and the
    # output once; the rest is float32's. A turned query may round to the other neighbour.
    flips = unit if b.turned else 0.0
    assert_close(
        out, truth, relative=1.1 * unit, absolute=largest * (1.1 * unit + 2 * flips + 5e-6)
    )
    assert_close(lse, truth_lse, relative=1e-6, absolute=5e-6 + flips)


def run(name: str, b: Batch, kernels: Kernels) -> None:
    x = inputs(name, b)
    check(b, x, *attend(kernels, b, x))


def joined(name: str, b: Batch, kernels: Kernels) -> None:
    """A request's first pages and its others, joined by merge_attention: attention to all of them."""
    x, first = inputs(name, b), 7
    p, parts = x.pages, []
    for pages, lengths in (
        (slice(first), [min(n, first * b.slots) for n in b.keys]),
        (slice(first, None), [max(n - first * b.slots, 0) for n in b.keys]),
    ):
        part = Pages(p.k, p.v, p.k_scales, p.v_scales, p.table[:, pages].contiguous(), lengths)
        parts += attend_on_device(kernels, replace(b, keys=tuple(lengths)), replace(x, pages=part))
    out = kernels.empty(*x.q.shape, dtype=b.dtype)
    lse = kernels.empty(x.q.shape[1], x.q.shape[0], dtype=torch.float32)
    kernels.compiled.merge_attention(*parts, out, lse)
    check(b, x, kernels.get(out), kernels.get(lse))


def alone(name: str, b: Batch, kernels: Kernels) -> None:
    """A request's bits do not depend on the others, nor on where its pages are or how large they are."""
    x = inputs(name, b)
    out, lse = attend(kernels, b, x)
    ends = offsets(list(b.queries)).tolist()
    for n in range(len(b.queries)):
        now, p = slice(ends[n], ends[n + 1]), x.pages
        one = replace(b, queries=b.queries[n : n + 1], keys=b.keys[n : n + 1])
        pages = Pages(p.k, p.v, p.k_scales, p.v_scales, p.table[n : n + 1], p.lengths[n : n + 1])
        if b.slots > 1:
            pages = split_pages(pages)
        got, got_lse = attend(kernels, one, Inputs(x.q[now], pages, None, None))
        assert torch.equal(got, out[now])
        assert torch.equal(got_lse, lse[:, now])


def split_pages(p: Pages) -> Pages:
    """The same tokens in pages of one slot, in the opposite order."""
    slots = p.k.shape[2]
    flat = [
        None if t is None else t.transpose(1, 2).flatten(0, 1).unsqueeze(2).flip(0).contiguous()
        for t in (p.k, p.v, p.k_scales, p.v_scales)
    ]
    valid = p.table.clamp(0, len(p.k) - 1).long()[..., None] * slots + torch.arange(slots)
    assert flat[0] is not None
    assert flat[1] is not None
    table = (len(flat[0]) - 1 - valid.flatten(1)).to(torch.int32)
    return Pages(flat[0], flat[1], flat[2], flat[3], table, p.lengths)


def make_plan(kernels: Kernels, b: Batch, x: Inputs, **limits: int) -> Any:
    most = {
        "requests": 5,
        "pages": 40,
        "queries": max(b.queries),
        "tokens": 60,
        "splits": 32,
    } | limits
    return kernels.compiled.PagedAttentionPlan(
        kernels.put(x.pages.k), b.kv_heads * b.group, *most.values(), b.causal, *b.window
    )


def attend_by(kernels: Kernels, plan: Any, b: Batch, x: Inputs, rows: int) -> tuple[Tensor, Tensor]:
    """With q, out and lse of `rows` rows, as a captured launch would have them."""
    tokens, heads = x.q.shape[:2]
    q = torch.full((rows, heads, b.dim), torch.nan, dtype=b.dtype)
    q[:tokens] = x.q
    out = kernels.empty(rows, heads, b.dim, dtype=b.dtype)
    lse = kernels.empty(heads, rows, dtype=torch.float32)
    p, times = x.pages, x.times
    if times is not None:
        times = torch.cat((times, times.new_zeros(rows - tokens)))
    plan.attend(
        *map(kernels.put, (q, p.k, p.v)), kernels.put(times), kernels.put(x.inv_freq), b.interleaved,
        b.dim**-0.5,
        kernels.put(p.k_scales), kernels.put(p.v_scales), out, lse,
    )  # fmt: skip
    assert kernels.get(out)[tokens:].isnan().all()
    return kernels.get(out)[:tokens], kernels.get(lse)[:, :tokens]


def planned(name: str, b: Batch, kernels: Kernels) -> None:
    """One plan for batches of several sizes gives the bits of a call without one; times may be integers."""
    x = inputs(name, b)
    plan = make_plan(kernels, b, x)
    p = x.pages
    for count in (len(b.queries), 1, 0, 2):
        few, ends = (
            replace(b, queries=b.queries[:count], keys=b.keys[:count]),
            offsets(list(b.queries)),
        )
        pages = Pages(p.k, p.v, p.k_scales, p.v_scales, p.table[:count], p.lengths[:count])
        times = None if x.times is None else x.times[: ends[count]].floor()
        part = Inputs(x.q[: ends[count]], pages, times, x.inv_freq)
        plan.update(kernels.put(p.k), pages.table, ends[: count + 1], int32(pages.lengths))
        wanted = attend(kernels, few, part)
        for dtype in (torch.float32, torch.int32, torch.int64):
            whole = replace(part, times=None if times is None else times.to(dtype))
            got = attend_by(kernels, plan, few, whole, 60)
            assert torch.equal(got[0], wanted[0])
            assert torch.equal(got[1], wanted[1])
            if times is None:
                break
    plan.check(kernels.put(p.k))
    check(few, part, *got)


def limits(name: str, kernels: Kernels) -> None:
    """What a plan of the tightest limits sets aside is enough for any batch within them."""
    random = generator(name)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    like = kernels.put(torch.zeros(1, 2, 1, 8, dtype=torch.bfloat16))
    for _ in range(200):
        count, most = draw(1, 5), draw(1, 40)
        queries = [draw(0, most) for _ in range(count)]
        keys = [draw(0, 3000) for _ in range(count)]
        group, splits = [1, 3, 16, 17][draw(0, 3)], [1, 2, 7, 32][draw(0, 3)]
        plan = kernels.compiled.PagedAttentionPlan(
            like, 2 * group, count, max(*keys, 1), max(*queries, 1), max(sum(queries), 1), splits,
            bool(draw(0, 1)), [-1, 900][draw(0, 1)], -1,
        )  # fmt: skip
        plan.update(
            like, torch.zeros(count, 3000, dtype=torch.int32), offsets(queries), int32(keys)
        )


def overwritten(name: str, b: Batch, kernels: Kernels) -> None:
    """An id that is written over on the device is not followed: the request is named, others are right."""
    x = inputs(name, b)
    for bad in (-1, len(x.pages.k), 2**31 - 1, -(2**31)):
        plan = make_plan(kernels, b, x)
        batch = (x.pages.table, offsets(list(b.queries)), int32(x.pages.lengths))
        like = kernels.put(x.pages.k)
        plan.update(like, *batch)
        write_word(kernels, plan, -1, bad)  # the last page of the last request
        out, lse = attend_by(kernels, plan, b, x, 60)
        check(b, x, out, lse, slice(-b.queries[-1]))
        assert out.isfinite().all()
        named = rf"page_table\[{len(b.keys) - 1}\] .* pool of {len(x.pages.k)}"
        if bad < 0:
            assert_refused(named, plan.check, like)
        else:
            assert_refused(named, plan.update, like, *batch)
        plan.update(like, *batch)  # told once; the batch is sent anew
        attend_by(kernels, plan, b, x, 60)
        plan.check(like)


def outgrown(name: str, b: Batch, kernels: Kernels) -> None:
    """A captured launch that meets more tokens than its tensors have rows touches none of that request."""
    x = inputs(name, b)
    plan, like = make_plan(kernels, b, x), kernels.put(x.pages.k)
    plan.update(like, x.pages.table, offsets(list(b.queries)), int32(x.pages.lengths))
    write_word(kernels, plan, 8 + 2, 1000)  # PagedItem::queries of the first item
    out, _ = attend_by(kernels, plan, b, x, 60)
    assert out.isnan().any()
    assert_refused(r"tokens of request \d are more than", plan.check, like)


DECODE = Batch((1, 1, 1, 1), (1, 64, 0, 131))
CHUNKS = Batch((5, 0, 20, 3), (40, 12, 83, 0), group=4, dim=64)
KINDS = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}


def _cases() -> list[Case]:
    made = []

    def add(name: str, batch: Batch, core: bool = False, test: object = run) -> None:
        made.append(Case(name, partial(test, name, batch), core))  # type: ignore[arg-type]

    add("decode", DECODE, True)
    add("chunks", CHUNKS, True)
    add(
        "parts",
        replace(DECODE, queries=(1, 2), keys=(1040, 600), group=2, kv_heads=1, dim=64),
        True,
    )
    # The first has more keys than a block takes in one part, the last none in the pages that are joined.
    halves = replace(DECODE, queries=(1, 2, 3), keys=(800, 131, 40), causal=False, dim=64)
    add("joined", halves, True, joined)
    # Fewer channels than a tile has, and NaN behind them.
    add("dim-72-gap", replace(DECODE, queries=(1, 2), keys=(20, 9), dim=72, gap=8), True)
    # More rows to merge than blocks at once: a block takes a second one.
    merges = replace(DECODE, queries=(1, 1), keys=(600, 530), group=8, kv_heads=5, dim=64)
    add("merges", merges, True)
    for kind, pages in KINDS.items():
        add(f"decode-{kind}", replace(DECODE, pages=pages), True)
        add(f"chunks-{kind}", replace(CHUNKS, pages=pages, dim=128), True)
        add(f"float16-{kind}", replace(CHUNKS, dtype=torch.float16, pages=pages), True)
        add(f"parts-{kind}", replace(CHUNKS, keys=(700, 12, 530, 0), pages=pages))
    add("float16", replace(DECODE, dtype=torch.float16, turned=True), True)
    add("turned", replace(CHUNKS, turned=True), True)
    add("turned-interleaved", replace(DECODE, turned=True, interleaved=True, dim=64), True)
    add("window", replace(CHUNKS, causal=False, window=(17, 3)), True)
    # Tiles of keys that a window begins in, but does not end in.
    long = replace(DECODE, queries=(3, 1), keys=(200, 150), window=(100, -1), dim=64)
    add("window-begins", long, True)
    add("window-begins-decode", replace(long, group=2), True)
    # Sixteen keys of which some rows see none.
    add("unseen", replace(DECODE, queries=(3,), keys=(18,), group=2, dim=64), True)
    # More items than blocks at once (of the emulated device): a block takes a second one.
    add(
        "many", replace(DECODE, queries=(1,) * 9, keys=(20,) * 9, dim=64, kv_heads=3, group=2), True
    )
    add("plain-float32", replace(CHUNKS, dtype=torch.float32, dim=33, turned=True), True)
    add("same-bits", replace(DECODE, keys=(70, 800, 0, 9), group=2, kv_heads=1), True, alone)
    plans = replace(CHUNKS, queries=(5, 0, 1, 9), keys=(40, 0, 530, 12), dim=64)
    add("plan", plans, True, planned)
    decodes = replace(DECODE, keys=(530, 64, 0, 9), pages=torch.int8, turned=True)
    add("plan-decode-int8", decodes, True, planned)
    made.append(Case("limits", partial(limits, "limits")))
    short = replace(plans, keys=(40, 0, 70, 30))
    for kind in (torch.bfloat16, torch.int8):
        name = f"overwritten-{str(kind).removeprefix('torch.')}"
        add(name, replace(short, pages=kind), True, overwritten)
    add("outgrown", short, True, outgrown)
    add("outgrown-float32", replace(short, dtype=torch.float32), test=outgrown)
    add("overwritten-float32", replace(short, dtype=torch.float32), test=overwritten)
    for slots in (1, 8, 48, 64, 128):
        add(f"slots-{slots}", replace(DECODE, keys=(1, 64, 0, 300), slots=slots))
        add(f"slots-{slots}-int8", replace(DECODE, slots=slots, pages=torch.int8, dim=64))
    for dim in (8, 72, 80, 96, 200, 256):
        add(f"dim-{dim}", replace(DECODE, dim=dim, turned=True, group=3))
        add(f"dim-{dim}-chunks", replace(CHUNKS, dim=dim, turned=True, interleaved=True))
        for kind, pages in KINDS.items():
            add(f"dim-{dim}-{kind}", replace(CHUNKS, queries=(1, 0, 20, 3), dim=dim, pages=pages))
    for group in (1, 8, 16, 17):
        add(f"group-{group}", replace(DECODE, group=group, kv_heads=3))
    for window in ((0, 0), (70, -1), (-1, 9), (3, 2)):
        for causal in (False, True):
            name = f"window-{window[0]}-{window[1]}{'-causal' * causal}"
            add(name, replace(CHUNKS, keys=(90, 3, 200, 5), causal=causal, window=window))
    add("window-parts", replace(DECODE, keys=(1, 900, 0, 1500), window=(700, -1), causal=False))
    for dtype in FLOATS:
        kind = str(dtype).removeprefix("torch.")
        add(f"chunk-{kind}", replace(CHUNKS, queries=(40,), keys=(333,), dtype=dtype, turned=True))
        add(f"gap-{kind}", replace(DECODE, dtype=dtype, gap=3))
        for pages_kind, pages in KINDS.items():
            plain = replace(CHUNKS, dtype=dtype, pages=pages, dim=24)
            add(f"plain-{kind}-{pages_kind}", plain)
    for dtype in HALVES:
        kind = str(dtype).removeprefix("torch.")
        add(f"same-bits-{kind}", replace(CHUNKS, dtype=dtype, keys=(600, 12, 900, 0)), test=alone)
        add(f"same-bits-{kind}-int8", replace(DECODE, dtype=dtype, pages=torch.int8), test=alone)
    return made


CASES = _cases()
