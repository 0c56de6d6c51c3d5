"""Decode and chunked prefill over pages, bf16 and int8, beside torch's attention over contiguous keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops
from afnext.ops.runtime import expect_huge_pages

from .case import LIMIT, Case, rotated

# (what, queries, tokens held, query heads, KV heads, head dim, slots of a page)
SHAPES = [
    ("decode after 30 minutes of audio", 1, 45_000, 28, 4, 128, 16),
    ("decode after 30 minutes of audio", 1, 45_000, 28, 4, 128, 32),
    ("decode after 30 minutes of audio", 1, 45_000, 28, 4, 128, 64),
    ("decode", 1, 2_000, 28, 4, 128, 32),
    ("nano's decode", 1, 500, 8, 2, 64, 16),
    ("chunk of a prefill", 256, 8_192, 28, 4, 128, 32),
]
LONG = 45_000  # tokens behind which memory is the limit


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As the engine's pool makes pages."""
    pages = torch.empty(shape, dtype=dtype)
    expect_huge_pages(pages)
    return pages.zero_()


class Held:
    """One request's keys and values in pages taken in random order, as int8, and contiguous."""

    def __init__(self, tokens: int, heads: int, slots: int, dim: int) -> None:
        pages = -(-tokens // slots)
        k, v = (torch.randn(tokens, heads, dim).bfloat16() for _ in range(2))
        shape = pages, heads, slots, dim
        self.table = torch.randperm(pages).to(torch.int32)[None]
        ends, start = torch.tensor([0, tokens]).int(), torch.zeros(1).int()
        self.pages = _empty(shape, torch.bfloat16), _empty(shape, torch.bfloat16)
        ops.paged_append(k, v, *self.pages, self.table, ends, start)
        self.int8 = _empty(shape, torch.int8), _empty(shape, torch.int8)
        self.scales = torch.zeros(pages, heads, slots), torch.zeros(pages, heads, slots)
        k_scales, v_scales = self.scales
        ops.paged_append(
            k, v, *self.int8, self.table, ends, start, k_scales=k_scales, v_scales=v_scales
        )
        self.packed = k, v
        self.contiguous_k, self.contiguous_v = (
            x.transpose(0, 1)[None].contiguous() for x in (k, v)
        )
        # [heads, D, tokens]: what torch multiplies fastest, though every new token moves all others
        self.transposed_k, self.transposed_v = (x.permute(1, 2, 0).contiguous() for x in (k, v))


def shape_cases(
    what: str, queries: int, tokens: int, heads: int, kv_heads: int, dim: int, slots: int
) -> Iterator[Case]:
    """bf16 pages, then int8 ones, each beside torch over contiguous keys in every arrangement it takes."""
    size = 2 * tokens * kv_heads * dim * torch.bfloat16.itemsize
    held = rotated(lambda: Held(tokens, kv_heads, slots, dim), size)
    q = torch.randn(queries, heads, dim).bfloat16()
    rows = q.transpose(0, 1)[None].contiguous()
    ends = torch.tensor([0, queries], dtype=torch.int32)
    lengths = torch.tensor([tokens], dtype=torch.int32)
    cu_k = torch.tensor([0, tokens], dtype=torch.int32)
    seen = None if queries == 1 else torch.ones(queries, tokens).tril(tokens - queries).bool()

    def ours() -> object:
        h = held()
        return ops.paged_attention(q, *h.pages, h.table, ends, lengths)

    def ours_int8() -> object:
        h = held()
        k_scales, v_scales = h.scales
        return ops.paged_attention(
            q, *h.int8, h.table, ends, lengths, k_scales=k_scales, v_scales=v_scales
        )

    def contiguous() -> object:
        return ops.attention(q, *held().packed, cu_seqlens_q=ends, cu_seqlens_k=cu_k, causal=True)

    def grouped() -> object:
        h = held()
        return F.scaled_dot_product_attention(
            rows, h.contiguous_k, h.contiguous_v, attn_mask=seen, enable_gqa=True
        )

    def expanded() -> object:
        h = held()
        k, v = (
            x.repeat_interleave(heads // kv_heads, dim=1) for x in (h.contiguous_k, h.contiguous_v)
        )
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=seen)

    def folded() -> object:
        h = held()
        return F.scaled_dot_product_attention(
            rows.view(1, kv_heads, -1, dim), h.contiguous_k, h.contiguous_v
        )

    def by_hand() -> object:
        h = held()
        k, v = h.contiguous_k[0], h.contiguous_v[0]
        scores = rows.view(kv_heads, -1, dim) @ k.transpose(1, 2) * dim**-0.5
        return torch.softmax(scores, dim=-1) @ v

    def by_hand_transposed() -> object:
        h = held()
        scores = rows.view(kv_heads, -1, dim) @ h.transposed_k * dim**-0.5
        return torch.softmax(scores, dim=-1) @ h.transposed_v.transpose(1, 2)

    peers: dict[str, Callable[[], object]] = {
        "ops.attention, contiguous": contiguous,
        "torch, enable_gqa": grouped,
    }
    if queries == 1:  # no mask among the rows of a head
        peers |= {
            "torch, heads folded into rows": folded,
            "torch, by hand": by_hand,
            "torch's best: K, V transposed": by_hand_transposed,
        }
    else:
        peers |= {"torch, heads expanded": expanded}
    flops = 4 * heads * dim * (queries * tokens - queries * (queries - 1) / 2)
    scales = 2 * tokens * kv_heads * torch.float32.itemsize
    for name, call, moved in (("bfloat16", ours, size), ("int8", ours_int8, size / 2 + scales)):
        yield Case(
            f"{what}: {queries} of {tokens}, {heads} heads, {kv_heads} KV heads, D = {dim}, {name} pages "
            f"of {slots}",
            label="ops.paged_attention",
            ours=call,
            peers=peers,
            flops=flops,
            bytes=moved,
            dtype="bfloat16",
            targets={LIMIT: 0.8} if queries == 1 and tokens >= LONG and name == "bfloat16" else {},
            context=torch.inference_mode,
            rounds=7,
        )


def cases() -> Iterator[Case]:
    """Every shape."""
    for shape in SHAPES:
        yield from shape_cases(*shape)
