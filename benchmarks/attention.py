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
# Prefill of the 7B decoder, in bf16, rotation included: tokens of a prompt.
PROMPTS = [2048, 8192]


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


def torch_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As transformers turns ``[T, H, D]`` in bf16."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def prefill(tokens: int) -> None:
    """28 query heads on 4 KV heads of 128, causal, turned by position; torch's rotation counts as its own."""
    q, k, v = (torch.randn(tokens, h, 128).bfloat16() for h in (28, 4, 4))
    times, inv_freq = torch.arange(tokens).float(), 1e6 ** -torch.linspace(0, 1, 64)
    rotation = ops.Rotation(times, times, inv_freq)
    phases = (times[:, None] * inv_freq).repeat(1, 2)[:, None]
    cos, sin = phases.cos().bfloat16(), phases.sin().bfloat16()

    def repeated() -> Tensor:
        a, b = (for_torch(torch_rotate(x, cos, sin)) for x in (q, k))
        return torch_attention(a, b, for_torch(v), causal=True)

    def grouped() -> Tensor:
        a, b = (for_torch(torch_rotate(x, cos, sin)) for x in (q, k))
        return F.scaled_dot_product_attention(a, b, for_torch(v), is_causal=True, enable_gqa=True)

    peak = peak_flops(torch.bfloat16)
    flops = 2 * 128 * 28 * tokens * tokens
    print(
        f" prefill: [{tokens}, 28, 128], 4 KV heads, causal, rotation, bfloat16; limit "
        f"{milliseconds(flops / peak)} at {peak / 1e9:.0f} GFLOP/s"
    )
    with torch.inference_mode():
        timings = compare(
            {
                "ops.attention": partial(ops.attention, q, k, v, causal=True, rotation=rotation),
                "torch, KV heads repeated": repeated,
                "torch, enable_gqa": grouped,
            },
            rounds=5,
        )
    print(f"  ours: {flops / timings['ops.attention'].median / 1e9:.0f} GFLOP/s")


def run() -> None:
    """Print the table."""
    for tokens in PROMPTS:
        prefill(tokens)
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
