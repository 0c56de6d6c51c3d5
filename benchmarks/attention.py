"""Attention forward and backward beside torch's scaled_dot_product_attention and the machine's peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops

from .case import Call, Case

# (what, tokens, query heads, KV heads, head dim, causal)
SHAPES = [
    ("encoder window", 1500, 8, 8, 64, False),
    ("decoder prefill", 2048, 28, 4, 128, True),
    ("long", 4096, 4, 4, 128, False),
]
# Prefill of the 7B decoder, in bf16, rotation included: tokens of a prompt.
PROMPTS = [2048, 8192]


def for_torch(x: Tensor) -> Tensor:
    """``[T, H, D]`` as torch's own op likes it: ``[1, H, T, D]``, contiguous."""
    return x.detach().transpose(0, 1)[None].contiguous().requires_grad_(x.requires_grad)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """With KV heads repeated, as transformers does."""
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def backward(forward: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor) -> Call:
    """The backward alone: the graph is made at the first call, which is not timed."""
    graph = cache(forward)
    return lambda: torch.autograd.grad(graph(), inputs, grad, retain_graph=True)


def torch_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As transformers turns ``[.., T, D]`` in bf16."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def prefill(tokens: int) -> Iterator[Case]:
    """28 query heads on 4 KV heads of 128, causal, turned by position; torch's rotation counts as its own."""
    inputs = [torch.randn(tokens, h, 128).bfloat16().requires_grad_() for h in (28, 4, 4)]
    theirs = [for_torch(x) for x in inputs]
    times, inv_freq = torch.arange(tokens).float(), 1e6 ** -torch.linspace(0, 1, 64)
    phases = (times[:, None] * inv_freq).repeat(1, 2)
    cos, sin = phases.cos().bfloat16(), phases.sin().bfloat16()
    ours = partial(
        ops.attention, *inputs, causal=True, rotation=ops.Rotation(times, times, inv_freq)
    )

    def turned() -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = theirs
        return torch_rotate(q, cos, sin), torch_rotate(k, cos, sin), v

    def grouped() -> Tensor:
        return F.scaled_dot_product_attention(*turned(), is_causal=True, enable_gqa=True)

    def repeated() -> Tensor:
        return torch_attention(*turned(), causal=True)

    best = "torch, KV heads repeated"
    peers = {best: repeated, "torch, enable_gqa": grouped}
    described = f"[{tokens}, 28, 128], 4 KV heads, causal, bfloat16"
    flops = 2 * 128 * 28 * tokens * tokens
    rounds = 5 if tokens <= 2048 else 3
    yield Case(
        f"prefill of 7B, rotation included: {described}",
        label="ops.attention",
        ours=ours,
        peers=peers,
        flops=flops,
        dtype="bfloat16",
        targets={best: 2.2},
        context=torch.no_grad,
        rounds=rounds,
        slow=tokens > 2048,
    )
    grad = torch.randn(tokens, 28, 128).bfloat16()
    yield Case(
        f"prefill of 7B, rotation included, backward: {described}",
        label="ops.attention",
        ours=backward(lambda: ours()[0], inputs, grad),
        peers={name: backward(peer, theirs, for_torch(grad)) for name, peer in peers.items()},
        flops=2.5 * flops,
        dtype="bfloat16",
        targets={best: 1.5},
        rounds=rounds,
        slow=True,
    )


def shape_cases(
    what: str, tokens: int, heads: int, kv_heads: int, dim: int, causal: bool, dtype: torch.dtype
) -> Iterator[Case]:
    """Forward and backward of one shape."""
    # Two products of a multiply and an add for each pair of a query and a key it sees; the backward
    # computes the first again, and three more.
    flops = 4 * dim * heads * tokens * tokens / (2 if causal else 1)
    name = str(dtype).removeprefix("torch.")
    described = (
        f"[{tokens}, {heads}, {dim}], {kv_heads} KV heads, {'causal' if causal else 'full'}, {name}"
    )
    inputs = [
        torch.randn(tokens, h, dim).to(dtype).requires_grad_() for h in (heads, kv_heads, kv_heads)
    ]
    theirs = [for_torch(x) for x in inputs]
    ours = partial(ops.attention, *inputs, causal=causal)
    peer = partial(torch_attention, *theirs, causal=causal)
    yield Case(
        f"{what}: {described}",
        label="ops.attention",
        ours=ours,
        peers={"torch": peer},
        flops=flops,
        dtype=name,
        context=torch.no_grad,
        rounds=5,
    )
    grad = torch.randn(tokens, heads, dim).to(dtype)
    yield Case(
        f"{what}, backward: {described}",
        label="ops.attention",
        ours=backward(lambda: ours()[0], inputs, grad),
        peers={"torch": backward(peer, theirs, for_torch(grad))},
        flops=2.5 * flops,
        dtype=name,
        rounds=5,
        slow=True,
    )


def cases() -> Iterator[Case]:
    """7B's prefill and its backward, then every shape in both dtypes."""
    for tokens in PROMPTS:
        yield from prefill(tokens)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            yield from shape_cases(*shape, dtype)
