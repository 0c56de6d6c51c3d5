"""Attention: forward and backward over packed sequences, decode over pages, beside torch's backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from afnext import ops

from ..case import Case
from .lab import Lab
from .row import Row, agree

BF16 = 2  # bytes
ROUNDING = 2e-2  # between two results of bfloat16, in norm
SLOTS = 64


def _backends(lab: Lab) -> dict[str, SDPBackend]:
    if lab.rehearse:
        return {"torch": SDPBackend.MATH}
    return {"torch, flash": SDPBackend.FLASH_ATTENTION, "torch, cuDNN": SDPBackend.CUDNN_ATTENTION}


def _rotation(lab: Lab, tokens: int, dim: int) -> ops.Rotation:
    times = torch.arange(tokens, device=lab.device)
    return ops.Rotation(times, times, (1e6 ** -(torch.arange(0, dim, 2) / dim)).to(lab.device))


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None].contiguous()


def attention(lab: Lab, tokens: int, heads: int, kv_heads: int, dim: int) -> Case:
    """Ours turns q and k as it goes; the others get them turned."""
    rotation = _rotation(lab, tokens, dim)
    size = 2.0 * BF16 * tokens * (heads + kv_heads) * dim

    def make() -> Any:
        q, k, v = (lab.random(tokens, n, dim) for n in (heads, kv_heads, kv_heads))
        turned = (ops.rotate(x, rotation.times_q, rotation.inv_freq) for x in (q, k))
        return (q, k, v, *map(_heads_first, (*turned, v)))

    inputs = lab.rotated(make, size)

    def ours() -> object:
        q, k, v = inputs()[:3]
        return ops.attention(q, k, v, causal=True, rotation=rotation)

    def sdpa(backend: SDPBackend) -> Callable[[], object]:
        def call() -> object:
            q, k, v = inputs()[3:]
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return call

    one = make()
    return Case(
        f"forward, causal, {tokens} tokens, {heads}/{kv_heads} heads of {dim}",
        ours=ours,
        peers={name: sdpa(backend) for name, backend in _backends(lab).items()},
        flops=2.0 * tokens * tokens * heads * dim,
        bytes=size,
        dtype="bfloat16",
        check=agree(
            lambda: ops.attention(one[0], one[1], one[2], causal=True, rotation=rotation),
            lambda: F.scaled_dot_product_attention(
                one[3], one[4], one[5], is_causal=True, enable_gqa=True
            )[0].transpose(0, 1),
            ROUNDING,
        ),
    )  # fmt: skip


def attention_backward(lab: Lab, tokens: int, heads: int, kv_heads: int, dim: int) -> Case:
    rotation = _rotation(lab, tokens, dim)
    q, k, v = (lab.random(tokens, n, dim).requires_grad_() for n in (heads, kv_heads, kv_heads))
    grad = lab.random(tokens, heads, dim)
    ours, _ = ops.attention(q, k, v, causal=True, rotation=rotation)

    def sdpa(backend: SDPBackend) -> Callable[[], object]:
        def call() -> object:
            if not made:
                made.extend(_heads_first(x.detach()).requires_grad_() for x in (q, k, v))
                with sdpa_kernel(backend):
                    out = F.scaled_dot_product_attention(
                        made[0], made[1], made[2], is_causal=True, enable_gqa=True
                    )
                made.append(out)
            return torch.autograd.grad(made[3], made[:3], grads, retain_graph=True)

        made: list[Any] = []
        return call

    grads = _heads_first(grad)
    return Case(
        f"backward, causal, {tokens} tokens, {heads}/{kv_heads} heads of {dim}",
        ours=lambda: torch.autograd.grad(ours, (q, k, v), grad, retain_graph=True),
        peers={name: sdpa(backend) for name, backend in _backends(lab).items()},
        flops=5.0 * tokens * tokens * heads * dim,
        bytes=4.0 * BF16 * tokens * (heads + kv_heads) * dim,
        dtype="bfloat16",
    )


def paged_decode(lab: Lab, batch: int, tokens: int, heads: int, kv_heads: int, dim: int) -> Case:
    size = 2.0 * BF16 * batch * tokens * kv_heads * dim
    pages = -(-tokens // SLOTS)
    lengths = torch.full((batch,), tokens, dtype=torch.int32)
    ends = torch.arange(batch + 1, dtype=torch.int32)
    table = torch.randperm(batch * pages).int().view(batch, pages)
    q = lab.random(batch, heads, dim)

    def make() -> Any:
        paged = [lab.random(batch * pages, kv_heads, SLOTS, dim) for _ in range(2)]
        rows = (
            x[table.long().to(lab.device)]
            .transpose(1, 2)
            .reshape(batch, kv_heads, -1, dim)[:, :, :tokens]
            .contiguous()
            for x in paged
        )
        return (*paged, *rows)

    inputs = lab.rotated(make, size)

    one = inputs()
    plan = ops.PagedAttentionPlan(one[0], heads, max_requests=batch, max_pages=pages)
    plan.update(table, ends, lengths)

    def ours() -> object:
        k_pages, v_pages = inputs()[:2]
        return plan.attend(q, k_pages, v_pages)

    def sdpa(backend: SDPBackend) -> Callable[[], object]:
        def call() -> object:
            k, v = inputs()[2:]
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)

        return call

    return Case(
        f"decode, {batch} x {tokens} tokens held, {heads}/{kv_heads} heads of {dim}",
        ours=ours,
        peers={f"{name}, contiguous": sdpa(backend) for name, backend in _backends(lab).items()},
        flops=4.0 * batch * tokens * heads * dim,
        bytes=size,
        dtype="bfloat16",
        check=agree(
            lambda: plan.attend(q, one[0], one[1]),
            lambda: F.scaled_dot_product_attention(q[:, :, None], one[2], one[3], enable_gqa=True),
            ROUNDING,
        ),
    )


HEADS = {"heads": 28, "kv_heads": 4, "dim": 128}
TINY = {"tokens": 9, "heads": 4, "kv_heads": 2, "dim": 16}
ROWS = [
    *(Row("attention", attention, {"tokens": n, **HEADS}, TINY) for n in (8192, 2048, 16384)),
    Row("paged_attention", paged_decode, {"batch": 16, "tokens": 32768, **HEADS},
        {**TINY, "batch": 2}),
    Row("paged_attention", paged_decode, {"batch": 1, "tokens": 45000, **HEADS}, TINY),
    *(Row("attention_backward", attention_backward, {"tokens": n, **HEADS}, TINY)
      for n in (8192, 2048, 16384)),
]  # fmt: skip
# By the kernels of older GPUs, which serve Ampere, Ada and consumer Blackwell.
OLDER_ROWS = [
    replace(row, older=True)
    for row in ROWS
    if row.op != "paged_attention" and row.sizes["tokens"] != 16384
]
