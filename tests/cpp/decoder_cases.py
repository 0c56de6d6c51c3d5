"""Reference cases of the decoder: its layers in float64, over a cache that is read token by token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.cpp.calls import DTYPES, Call, Output, label, randn
from tests.cpp.quantized_cases import whole_weight
from tests.ops.attention_oracle import Case, offsets, oracle, turn
from tests.ops.paged_cache import Cache, empty_cache

LAYERS, HIDDEN, WIDE = 2, 48, 80
HEADS, KV_HEADS, DIM = 4, 2, 16
SHAPES = {
    "qkv": ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
    "out": (HIDDEN, HEADS * DIM),
    "gate_up": (2 * WIDE, HIDDEN),
    "down": (HIDDEN, WIDE),
}
EPS = 1e-6
# Two layers of a dozen roundings each, of the activations' dtype; x of a quantised weight to integers of
# 16 bits. What is stored or added in the wrong place is off by the size of the numbers, some ones.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.15}
ROUNDED = 2e-3
EXPONENTS = {"int8": -9, "int4-g32": -5, "int4-g32-zp": -6}  # of a scale: weights near K**-0.5


def layer(dtype: torch.dtype, format: str) -> dict[str, Tensor]:
    """Random weights of one layer, such as their format holds exactly."""
    tensors = {
        "input_norm": 1 + randn(HIDDEN) / 4,
        "post_attention_norm": 1 + randn(HIDDEN) / 4,
        "qkv_bias": randn(SHAPES["qkv"][0]),
    }
    for name, (n, k) in SHAPES.items():
        tensors[name] = randn(n, k) / k**0.5
        if format in EXPONENTS:
            low = EXPONENTS[format]
            tensors[name], _ = whole_weight(n, k, format, (low, low + 1))
    return {name: t.to(dtype) for name, t in tensors.items()}


def exact(
    hidden: Tensor,
    layers: list[dict[str, Tensor]],
    caches: list[Cache],
    lengths: list[int],
    start: list[int],
    inv_freq: Tensor,
) -> Tensor:
    """Hidden states in float64; the caches, float64 too, receive keys and values."""

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return weight.double() * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)

    positions = [torch.arange(s, s + n) for s, n in zip(start, lengths, strict=True)]
    times = torch.cat(positions)
    for w, cache in zip(layers, caches, strict=True):
        qkv = normed(hidden, w["input_norm"]) @ w["qkv"].double().T + w["qkv_bias"].double()
        q, k, v = qkv.unflatten(-1, (-1, DIM)).split([HEADS, KV_HEADS, KV_HEADS], 1)
        q, k = (turn(x, times, inv_freq, interleaved=False) for x in (q, k))
        slots, at = cache.k_pages.shape[2], 0
        for n, places in enumerate(positions):
            for place in places.tolist():
                page = int(cache.table[n, place // slots])
                cache.k_pages[page, :, place % slots] = k[at]
                cache.v_pages[page, :, place % slots] = v[at]
                at += 1
        keys, values = (
            torch.cat([cache.gather(pages, n) for n in range(len(lengths))])
            for pages in (cache.k_pages, cache.v_pages)
        )
        case = Case(q, keys, values, lengths, cache.lengths.tolist(), causal=True)
        hidden = hidden + oracle(case, torch.float64)[0].flatten(1) @ w["out"].double().T
        both = normed(hidden, w["post_attention_norm"]) @ w["gate_up"].double().T
        gate, up = both.chunk(2, -1)
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ w["down"].double().T
    return hidden


def decoder() -> Iterator[Call]:
    def make(
        name: str, lengths: list[int], start: list[int], slots: int, dtype: torch.dtype, format: str
    ) -> Call:
        total = [a + b for a, b in zip(start, lengths, strict=True)]
        layers = [layer(dtype, format) for _ in range(LAYERS)]
        hidden, inv_freq = randn(sum(lengths), HIDDEN, dtype=dtype), torch.rand(DIM // 2)
        table = empty_cache(total, KV_HEADS, slots, DIM).table
        caches, outputs = [], {}
        for i in range(LAYERS):
            cache = empty_cache(total, KV_HEADS, slots, DIM)
            cache.table = table
            for n, held in enumerate(start):
                for t in range(held):
                    for pages in (cache.k_pages, cache.v_pages):
                        pages[table[n, t // slots], :, t % slots] = randn(KV_HEADS, DIM)
            before = [pages.to(dtype) for pages in (cache.k_pages, cache.v_pages)]
            cache.k_pages, cache.v_pages = (pages.double() for pages in before)
            caches.append(cache)
            bound = (max(TOLERANCE[dtype], ROUNDED if format in EXPONENTS else 0),) * 2
            outputs[f"k_pages.{i}"] = Output(cache.k_pages, dtype, before[0], bound)
            outputs[f"v_pages.{i}"] = Output(cache.v_pages, dtype, before[1], bound)
        expected = exact(hidden.double(), layers, caches, lengths, start, inv_freq)
        outputs["hidden"] = Output(expected, dtype, hidden, bound)
        inputs = {f"{n}.{i}": t for i, tensors in enumerate(layers) for n, t in tensors.items()}
        inputs |= {
            "inv_freq": inv_freq, "page_table": table, "cu_seqlens": offsets(lengths),
            "start": torch.tensor(start, dtype=torch.int32),
        }  # fmt: skip
        numbers = {
            "layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "eps": EPS,
        }  # fmt: skip
        return Call(name, inputs, outputs, numbers, {"format": format})

    for dtype in DTYPES:
        for format in (label(dtype), *EXPONENTS):
            name = f"{format} {label(dtype)}"
            yield make(f"decode {name}", [1, 1, 1], [5, 0, 17], 16, dtype, format)
            yield make(f"prefill {name}", [40, 0, 7], [0, 5, 9], 7, dtype, format)
    call = make("misuse", [1, 2], [5, 0], 8, torch.float32, "float32")
    table = call.inputs["page_table"]
    pages = call.outputs["k_pages.1"].expected
    yield call.misused("hidden", hidden=randn(3, HIDDEN + 1))
    yield call.misused("page_table", page_table=torch.full_like(table, 99))
    yield call.misused("start", start=torch.tensor([-1, 0], dtype=torch.int32))
    yield call.misused("cu_seqlens", cu_seqlens=torch.tensor([0, 1, 4], dtype=torch.int32))
    yield call.misused("k_pages", **{"k_pages.1": pages.bfloat16(), "v_pages.1": pages.bfloat16()})
    yield call.misused("qkv", **{"qkv.1": randn(8, HIDDEN)})
    yield call.misused("qkv_bias", **{"qkv_bias.0": randn(8)})
    yield call.misused("inv_freq", inv_freq=randn(3))
