"""Reference cases of small integers: weights of 4 and 8 bits, int8 pages.

Their inputs are whole multiples of powers of two, so that rounding them to integers loses nothing: what
comes out is known without a word of how it is found, to the last bit where no sum is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tests.cpp.calls import DTYPES, TOLERANCE, Call, Output, label, randn
from tests.ops.attention_oracle import Case, make_case, offsets, oracle, turn
from tests.ops.paged_cache import empty_cache, fill

EXACT = (0.0, 0.0)
# Name: bits of a value, elements of K that share a scale (0: the row), zero points.
FORMATS = {
    "int8": (8, 0, False),
    "int8-g128": (8, 128, False),
    "int4-g128": (4, 128, False),
    "int4-g32": (4, 32, False),
    "int4-g128-zp": (4, 128, True),
    "int4-g32-zp": (4, 32, True),
}


def powers(*shape: int, low: int = -6, high: int = 3) -> Tensor:
    return 2.0 ** torch.randint(low, high, shape)


def whole_rows(*shape: int, block: int | None = None) -> Tensor:
    """Rows of -127 to 127 times a power of two; each (or each ``block`` of one) has its largest."""
    x = torch.randint(-126, 127, shape).float()
    x[..., :: block or max(shape[-1], 1)] = 127
    return x * powers(*shape[:-1], 1, low=-7, high=-4)


def whole_weight(
    n: int, k: int, format: str, exponents: tuple[int, int] = (-6, 3)
) -> tuple[Tensor, dict[str, Tensor]]:
    """A float32 weight ``[n, k]`` and the tensors that hold it exactly; its first row is zero.

    Every group has the extremes of its format, which say what its scale and zero point are.
    """
    bits, group, zero_points = FORMATS[format]
    width = group or k
    groups = -(-k // width)
    low, high = exponents
    scales = powers(n, groups, low=low, high=high)
    first = torch.arange(groups) * width
    if bits == 8:
        values, zeros = torch.randint(-126, 127, (n, k)), torch.zeros(n, groups, dtype=torch.int64)
        values[:, first] = 127
    elif zero_points:
        values, zeros = torch.randint(0, 16, (n, k)), torch.randint(0, 16, (n, groups))
        values[:, first] = 15
        values[:, (first + 1)[first + 1 < k]] = 0
        if first[-1] + 1 == k:  # the only one of its group
            zeros[:, -1] = 0
    else:
        values, zeros = torch.randint(1, 16, (n, k)), torch.full((n, groups), 8)
        values[:, first] = 0
        scales *= torch.randint(0, 2, scales.shape) * 2 - 1
    scales[0] = 0
    zeros[0] = 8 if bits == 4 and not zero_points else 0
    values[0] = zeros[0, 0]
    each = torch.arange(k) // width
    weight = (values - zeros[:, each]) * scales[:, each]
    tensors = {"values": values.to(torch.int8), "scales": scales[:, 0].contiguous()}
    if group:
        tensors["scales"] = scales.bfloat16()
    if bits == 4:
        if k % 2:  # the spare half of the last byte is a weight of zero
            values = torch.cat([values, zeros[:, -1:]], 1)
        tensors["values"] = (values[:, 0::2] | values[:, 1::2] << 4).to(torch.uint8)
    if zero_points:
        tensors["zeros"] = zeros.to(torch.uint8)
    return weight, tensors


def quantize() -> Iterator[Call]:
    def make(name: str, weight: Tensor, format: str, tensors: dict[str, Tensor]) -> Call:
        outputs = {n: Output(t.double(), t.dtype, tolerance=EXACT) for n, t in tensors.items()}
        plain = format.removesuffix("-zp")
        numbers = {"zero_points": float(plain != format)}
        return Call(name, {"weight": weight}, outputs, numbers, {"format": plain})

    for format in FORMATS:
        for n, k in [(1, 1), (3, 31), (5, 129), (9, 260)]:
            for dtype in DTYPES:
                weight, tensors = whole_weight(n, k, format)
                yield make(f"[{n}, {k}] {format} {label(dtype)}", weight.to(dtype), format, tensors)
        weight, tensors = whole_weight(4, 64, format)
        yield make(f"strided {format}", torch.cat([weight, weight], 1)[:, :64], format, tensors)
    call = make("misuse", *whole_weight(2, 8, "int8")[:1], "int8", whole_weight(2, 8, "int8")[1])
    yield call.misused("weight", weight=torch.full((2, 8), torch.nan))
    yield call.misused("weight", weight=torch.zeros(2, 8, dtype=torch.int32))
    yield call.misused("values", values=torch.zeros(2, 7, dtype=torch.int8))
    yield call.misused("scales", scales=torch.zeros(3))


def pack() -> Iterator[Call]:
    """Packed and unpacked again: the weight that the tensors stand for."""

    def make(name: str, format: str, weight: Tensor, inputs: dict[str, Tensor]) -> list[Call]:
        n, k = weight.shape
        out = Output(weight.double(), weight.dtype, tolerance=EXACT)
        return [
            Call(f"{name}{' gate_up' if gate_up else ''}", inputs, {"out": out},
                 {"n": n, "k": k, "gate_up": gate_up}, {"format": format})
            for gate_up in (0, 1)
        ]  # fmt: skip

    for n, k in [(2, 1), (34, 65), (70, 129), (40, 256)]:
        for dtype in DTYPES:
            weight = randn(n, k, dtype=dtype)
            yield from make(f"[{n}, {k}] {label(dtype)}", label(dtype), weight, {"weight": weight})
        for format in FORMATS:
            weight, tensors = whole_weight(n, k, format)
            yield from make(f"[{n}, {k}] {format}", format, weight, tensors)
    call, _ = make("misuse", "int4-g32", *whole_weight(4, 64, "int4-g32"))
    yield call.misused("values", values=torch.zeros(4, 31, dtype=torch.uint8))
    yield call.misused("scales", scales=torch.zeros(4, 2))
    call, _ = make("misuse", "float32", randn(4, 8), {"weight": randn(4, 8)})
    yield call.misused("weight", weight=randn(4, 9))
    yield call.misused("weight", weight=torch.zeros(4, 8, dtype=torch.int64))


def paged_append() -> Iterator[Call]:
    """A scale for each token and head: a 127th of its largest."""

    def make(
        name: str, lengths: list[int], start: list[int], slots: int, dim: int, dtype: torch.dtype,
        half: int = 0,
    ) -> Call:  # fmt: skip
        total = [a + b for a, b in zip(start, lengths, strict=True)]
        cache = empty_cache(total, 2, slots, dim)
        k, v = (whole_rows(sum(lengths), 2, dim).to(dtype) for _ in "kv")
        if len(k):
            k[0], v[-1] = 0, 0
        inputs = {
            "k": k, "v": v, "page_table": cache.table, "cu_seqlens": offsets(lengths),
            "start": torch.tensor(start, dtype=torch.int32),
        }  # fmt: skip
        turned = k.double()
        if half:
            inputs |= {"times": torch.rand(len(k)) * 1e6, "inv_freq": torch.rand(half)}
            turned = turn(turned, inputs["times"], inputs["inv_freq"], interleaved=False)
        outputs = {}
        for which, rows in (("k", turned), ("v", v.double())):
            before = torch.full(cache.k_pages.shape, 77, dtype=torch.int8)
            pages, scales = before.double(), torch.full(before.shape[:3], torch.nan).double()
            peak = rows.abs().amax(-1)
            values = (rows * (127 / peak).nan_to_num(posinf=0)[..., None]).round()
            ends = inputs["cu_seqlens"].tolist()
            for n, length in enumerate(lengths):
                for t in range(length):
                    at = start[n] + t
                    page = int(cache.table[n, at // slots])
                    pages[page, :, at % slots] = values[ends[n] + t]
                    scales[page, :, at % slots] = peak[ends[n] + t] / 127
            loose = which == "k" and half > 0  # a turned element may round to its other neighbour
            outputs |= {
                f"{which}_pages": Output(pages, torch.int8, before, (float(loose), 0.0)),
                f"{which}_scales": Output(
                    scales, torch.float32, torch.full_like(scales, torch.nan).float(),
                    (0.0, 2e-6) if loose else EXACT,
                ),
            }  # fmt: skip
        return Call(name, inputs, outputs, {"interleaved": 0.0})

    for dtype in DTYPES:
        name = f"int8 pages {label(dtype)}"
        yield make(f"prefill {name}", [40, 0, 7], [0, 5, 9], 16, 64, dtype)
        yield make(f"turned {name}", [1, 1, 30], [15, 16, 0], 16, 80, dtype, 20)
        yield make(f"odd {name}", [9, 20], [2, 0], 7, 33, dtype)
    call = make("misuse of int8 pages", [3, 4], [0, 2], 8, 16, torch.float32)
    yield call.misused("k_scales", k_scales=randn(2, 2, 8))
    yield call.misused("v_scales", v_scales=randn(2, 2, 8))
    yield call.misused("v_pages", v_pages=call.outputs["v_pages"].expected.float())


def paged_attention() -> Iterator[Call]:
    def make(name: str, case: Case, slots: int) -> Call:
        scales = [powers(*x.shape[:2], low=-7, high=-5) for x in (case.k, case.v)]
        values = [torch.randint(-127, 128, x.shape).float() for x in (case.k, case.v)]
        case.k, case.v = (
            (x * s[..., None]).to(case.q.dtype) for x, s in zip(values, scales, strict=True)
        )
        out, lse = oracle(case, torch.float64)
        whole = replace(case, k=values[0], v=values[1])
        cache = fill(whole, slots)
        inputs = {"q": case.q, "page_table": cache.table, "kv_lengths": cache.lengths,
                  "cu_seqlens_q": offsets(case.lengths_q)}  # fmt: skip
        starts = offsets(case.lengths_k).tolist()
        for which, pages, s in zip("kv", (cache.k_pages, cache.v_pages), scales, strict=True):
            inputs[f"{which}_pages"] = pages.nan_to_num(77).to(torch.int8)
            paged = torch.full(pages.shape[:3], torch.nan)
            for n, length in enumerate(case.lengths_k):
                for t in range(length):
                    page = int(cache.table[n, t // slots])
                    paged[page, :, t % slots] = s[starts[n] + t]
            inputs[f"{which}_scales"] = paged
        left, right = case.window or (-1, -1)
        numbers = {
            "interleaved": 0.0, "causal": float(case.causal), "window_left": left,
            "window_right": right, "scale": case.q.shape[2] ** -0.5,
        }  # fmt: skip
        dtype = case.q.dtype
        outputs = {
            "out": Output(out, dtype),
            "lse": Output(lse, torch.float32, tolerance=TOLERANCE[dtype]),
        }
        return Call(name, inputs, outputs, numbers)

    for dtype in DTYPES:
        name = f"int8 pages {label(dtype)}"
        decode = make_case([1] * 4, [1, 0, 33, 150], group=7, dim=128, dtype=dtype, causal=True)
        yield make(f"decode {name}", decode, 16)
        chunks = make_case([5, 0, 70, 9], [40, 12, 90, 9], group=2, dtype=dtype, causal=True)
        yield make(f"chunks {name}", chunks, 16)
        window = make_case([9, 3], [40, 30], group=3, dim=40, dtype=dtype, window=(9, 4))
        yield make(f"window {name}", window, 7)
        split = make_case([1, 2], [1100, 2049], kv_heads=1, group=5, dtype=dtype, causal=True)
        yield make(f"split keys {name}", split, 48)
    call = make("misuse of int8 pages", make_case([2, 3], [9, 4]), 8)
    yield call.misused("k_scales", k_scales=None)
    yield call.misused("v_scales", v_scales=randn(1, 2, 8))
    yield call.misused("v_pages", v_pages=call.inputs["v_pages"].float())
