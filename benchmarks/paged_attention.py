"""Decode and chunked prefill over pages beside torch's attention over contiguous keys."""

from __future__ import annotations

from functools import partial

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
    ("chunk of a prefill", 256, 1_024, 28, 4, 128, 32),
]


def cached(tokens: int, heads: int, slots: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """Random k and v pages and a table that takes them in random order."""
    pages = -(-tokens // slots)
    kv = [torch.randn(pages, heads, slots, dim).to(dtype) for _ in range(2)]
    return [*kv, torch.randperm(pages).to(torch.int32)[None]]


def contiguous(pages: Tensor, table: Tensor, tokens: int) -> Tensor:
    """``[1, Hkv, tokens, D]``, as torch's own op likes it."""
    return pages[table[0].long()].transpose(0, 1).flatten(1, 2)[None, :, :tokens].contiguous()


def run() -> None:
    """Print the table."""
    memory = bandwidth()
    print(f" memory {memory / 1e9:.1f} GB/s")
    for what, queries, tokens, heads, kv_heads, dim, slots in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            print(
                f" {what}: {queries} of {tokens}, {heads} heads, {kv_heads} KV heads, D = {dim}, pages of "
                f"{slots}, {str(dtype).removeprefix('torch.')}"
            )
            q = torch.randn(queries, heads, dim).to(dtype)
            k_pages, v_pages, table = cached(tokens, kv_heads, slots, dim, dtype)
            ends = torch.tensor([0, queries], dtype=torch.int32)
            lengths = torch.tensor([tokens], dtype=torch.int32)
            keys, values = (contiguous(pages, table, tokens) for pages in (k_pages, v_pages))
            seen = torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries)
            timings = compare(
                {
                    "ops.paged_attention": partial(
                        ops.paged_attention, q, k_pages, v_pages, table, ends, lengths
                    ),
                    "torch, contiguous": partial(
                        F.scaled_dot_product_attention,
                        *(q.transpose(0, 1)[None].contiguous(), keys, values),
                        attn_mask=None if queries == 1 else seen,
                        enable_gqa=True,
                    ),
                },
                rounds=5,
            )
            ours = timings["ops.paged_attention"].median
            size = 2 * keys.numel() * dtype.itemsize
            flops = 4 * heads * dim * (queries * tokens - queries * (queries - 1) / 2)
            print(
                f"  ours: {size / ours / 1e9:.3g} GB/s of keys and values, {flops / ours / 1e9:.3g} GFLOP/s; "
                f"limit: memory {milliseconds(size / memory)}"
            )
