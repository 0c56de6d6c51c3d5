"""Attention forward and backward beside torch's scaled_dot_product_attention and the machine's peak."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops

from .timing import compare, milliseconds, peak_flops

# (what, tokens, query heads, KV heads, head dim, causal)
SHAPES = [
    ("encoder window", 1500, 8, 8, 64, False),
    ("decoder prefill", 2048, 7, 1, 128, True),
    ("long", 4096, 4, 4, 128, False),
]


def for_torch(x: Tensor) -> Tensor:
    """``[T, H, D]`` as torch's own op likes it: ``[1, H, T, D]``, contiguous."""
    return x.detach().transpose(0, 1)[None].contiguous().requires_grad_(x.requires_grad)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """With KV heads repeated, as transformers does: with ``enable_gqa`` torch's backward is slower."""
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def gradients(out: Tensor, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs, grad, retain_graph=True)


def run() -> None:
    """Print the table."""
    peak = peak_flops()
    print(f" peak of a float32 matrix product: {peak / 1e9:.0f} GFLOP/s")
    for what, tokens, heads, kv_heads, dim, causal in SHAPES:
        # Two products of a multiply and an add for each pair of a query and a key it sees.
        flops = 4 * dim * heads * tokens * tokens / (2 if causal else 1)
        for dtype in (torch.float32, torch.bfloat16):
            print(
                f" {what}: [{tokens}, {heads}, {dim}], {kv_heads} KV heads, "
                f"{'causal' if causal else 'full'}, {str(dtype).removeprefix('torch.')}; "
                f"limit {milliseconds(flops / peak)}, backward {milliseconds(2.5 * flops / peak)}"
            )
            inputs = [
                torch.randn(tokens, h, dim).to(dtype).requires_grad_()
                for h in (heads, kv_heads, kv_heads)
            ]
            theirs = [for_torch(x) for x in inputs]
            ours = partial(ops.attention, causal=causal)
            peer = partial(torch_attention, causal=causal)
            with torch.no_grad():
                compare(
                    {
                        "ops.attention": partial(ours, *inputs),
                        "torch": partial(peer, *theirs),
                    },
                    rounds=5,
                )
            out, out_theirs = ours(*inputs)[0], peer(*theirs)
            grad = torch.randn_like(out)
            compare(
                {
                    "ops.attention backward": partial(gradients, out, inputs, grad),
                    "torch backward": partial(gradients, out_theirs, theirs, for_torch(grad)),
                },
                rounds=5,
            )
