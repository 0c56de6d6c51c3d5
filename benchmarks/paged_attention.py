"""Decode and chunked prefill over pages, bf16 and int8, beside torch's attention over contiguous keys."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops

from .timing import bandwidth, compare, milliseconds

# (what, queries, tokens held, query heads, KV heads, head dim, slots of a page)
SHAPES = [
    ("decode after 30 minutes of audio", 1, 45_000, 28, 4, 128, 32),
    ("decode", 1, 2_000, 28, 4, 128, 32),
    ("nano's decode", 1, 500, 8, 2, 64, 16),
    ("chunk of a prefill", 256, 8_192, 28, 4, 128, 32),
]
POOL_BYTES = (
    300 << 20
)  # keys and values in all, more than caches hold: contestants take turns in them
Call = Callable[[], object]


class Held:
    """One request's keys and values in pages taken in random order, as int8, and contiguous."""

    def __init__(self, tokens: int, heads: int, slots: int, dim: int) -> None:
        pages = -(-tokens // slots)
        k, v = (torch.randn(tokens, heads, dim).bfloat16() for _ in range(2))
        empty = torch.zeros(pages, heads, slots, dim)
        self.table = torch.randperm(pages).to(torch.int32)[None]
        ends, start = torch.tensor([0, tokens]).int(), torch.zeros(1).int()
        self.pages = empty.bfloat16(), empty.bfloat16()
        ops.paged_append(k, v, *self.pages, self.table, ends, start)
        self.int8 = empty.to(torch.int8), empty.to(torch.int8)
        self.scales = torch.zeros(pages, heads, slots), torch.zeros(pages, heads, slots)
        k_scales, v_scales = self.scales
        ops.paged_append(
            k, v, *self.int8, self.table, ends, start, k_scales=k_scales, v_scales=v_scales
        )
        self.packed = k, v
        self.contiguous_k, self.contiguous_v = (
            x.transpose(0, 1)[None].contiguous() for x in (k, v)
        )


def in_turn(call: Callable[[Held], object], held: list[Held]) -> Call:
    """Calls on one cache after another."""
    turns = cycle(held)
    return lambda: call(next(turns))


def contestants(q: Tensor, tokens: int) -> dict[str, Callable[[Held], object]]:
    """Ours first; torch over contiguous keys in each arrangement that it takes."""
    queries, heads, dim = q.shape
    ends = torch.tensor([0, queries], dtype=torch.int32)
    lengths = torch.tensor([tokens], dtype=torch.int32)
    seen = None if queries == 1 else torch.ones(queries, tokens).tril(tokens - queries).bool()
    rows = q.transpose(0, 1)[None].contiguous()

    def ours(held: Held) -> object:
        return ops.paged_attention(q, *held.pages, held.table, ends, lengths)

    def ours_int8(held: Held) -> object:
        k_scales, v_scales = held.scales
        return ops.paged_attention(
            q, *held.int8, held.table, ends, lengths, k_scales=k_scales, v_scales=v_scales
        )

    def contiguous(held: Held) -> object:
        cu_k = torch.tensor([0, tokens], dtype=torch.int32)
        return ops.attention(q, *held.packed, cu_seqlens_q=ends, cu_seqlens_k=cu_k, causal=True)

    def grouped(held: Held) -> object:
        return F.scaled_dot_product_attention(
            rows, held.contiguous_k, held.contiguous_v, attn_mask=seen, enable_gqa=True
        )

    def expanded(held: Held) -> object:
        group = heads // held.contiguous_k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (held.contiguous_k, held.contiguous_v))
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=seen)

    def folded(held: Held) -> object:
        k, v = held.contiguous_k, held.contiguous_v
        return F.scaled_dot_product_attention(rows.view(1, k.shape[1], -1, dim), k, v)

    def by_hand(held: Held) -> object:
        k, v = held.contiguous_k[0], held.contiguous_v[0]
        scores = rows.view(k.shape[0], -1, dim) @ k.transpose(1, 2) * dim**-0.5
        return torch.softmax(scores, dim=-1) @ v

    arrangements: dict[str, Callable[[Held], object]] = {
        "ops.paged_attention": ours,
        "int8 pages": ours_int8,
        "ops.attention, contiguous": contiguous,
        "torch, enable_gqa": grouped,
        "torch, heads expanded": expanded,
    }
    if queries == 1:  # no mask among the rows of a head
        arrangements |= {"torch, heads folded into rows": folded, "torch, by hand": by_hand}
    return arrangements


def run() -> None:
    """Print the table."""
    memory = bandwidth()
    print(f" memory {memory / 1e9:.1f} GB/s; all in bfloat16")
    for what, queries, tokens, heads, kv_heads, dim, slots in SHAPES:
        size = 2 * tokens * kv_heads * dim * torch.bfloat16.itemsize
        count = min(-(-POOL_BYTES // size), 16)
        held = [Held(tokens, kv_heads, slots, dim) for _ in range(count)]
        print(
            f" {what}: {queries} of {tokens}, {heads} heads, {kv_heads} KV heads, D = {dim}, pages of "
            f"{slots}; {count} caches of {size / 2**20:.1f} MiB in turn"
        )
        q = torch.randn(queries, heads, dim).bfloat16()
        calls = {name: in_turn(call, held) for name, call in contestants(q, tokens).items()}
        with torch.inference_mode():
            timings = compare(calls, rounds=7)
        ours, int8 = timings["ops.paged_attention"].median, timings["int8 pages"].median
        flops = 4 * heads * dim * (queries * tokens - queries * (queries - 1) / 2)
        print(
            f"  ours: {size / ours / 1e9:.3g} GB/s of keys and values, {flops / ours / 1e9:.3g} GFLOP/s; "
            f"int8 {size / 2 / int8 / 1e9:.3g} GB/s; limit: memory {milliseconds(size / memory)}"
        )
