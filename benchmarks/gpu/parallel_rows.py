"""Attention that four ranks share beside one process's, all on this device: threads on streams of their own.

The device does the same work either way: what ranks take longer is what exchanges, merges and smaller kernels
cost, as far as nothing hides it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from afnext import ops
from afnext.parallel import Link, SequencePlan, attention, local_links, run_local

from ..case import Case
from .attention_rows import BF16, HEADS, ROUNDING, TINY
from .lab import Lab
from .row import Row, agree

ULYSSES, RING = 2, 2


def parallel_attention(lab: Lab, tokens: int, heads: int, kv_heads: int, dim: int) -> Case:
    """Forward and backward of a causal sequence."""
    plan = SequencePlan(ULYSSES, RING, "zigzag", (0, tokens))
    links = local_links(ULYSSES, RING)
    qkv = [lab.random(tokens, n, dim) for n in (heads, kv_heads, kv_heads)]
    grad = lab.random(tokens, heads, dim)
    parts = [
        ([plan.shard(x, rank).requires_grad_() for x in qkv], plan.shard(grad, rank))
        for rank in range(plan.size)
    ]
    one = [x.requires_grad_() for x in qkv]

    def alone() -> Tensor:
        out, _ = ops.attention(*one, causal=True)
        torch.autograd.grad(out, one, grad)
        return out

    def shared(overlap: bool = True) -> Callable[[], list[Tensor]]:
        def of_rank(link: Link) -> Tensor:
            leaves, grad = parts[link.rank]
            q, k, v = leaves
            out = attention(q, k, v, None, plan, link=link, overlap=overlap)
            torch.autograd.grad(out, leaves, grad)
            return out

        return lambda: run_local(links, of_rank)

    size = 2.0 * BF16 * tokens * (heads + kv_heads) * dim
    return Case(
        f"Ulysses {ULYSSES} x ring {RING}, forward and backward, causal, {tokens} tokens, "
        f"{heads}/{kv_heads} heads of {dim}",
        ours=shared(),
        peers={"one process": alone, "without overlap": shared(overlap=False)},
        flops=7.0 * tokens * tokens * heads * dim,
        bytes=3 * size,  # forward's, and twice in backward
        dtype="bfloat16",
        check=agree(lambda: plan.unshard(shared()()), alone, ROUNDING),
    )


NEEDS = ("attention", "attention_backward", "all_to_all_pack", "merge_attention")
ROWS = [Row("parallel_attention", parallel_attention, {"tokens": 16384, **HEADS}, TINY, NEEDS)]
