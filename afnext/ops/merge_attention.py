"""Merge of attention over disjoint sets of keys: ring steps, split-KV and shared prefixes use it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import Array, any_requires_grad, call, define, outputs, through_torch


def _fake(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    check.floating("merge_attention", "out_a", out_a, 3)
    check.typed("merge_attention", "out_b", out_b, out_a.dtype, tuple(out_a.shape))
    shape = (out_a.shape[1], out_a.shape[0])
    check.typed("merge_attention", "lse_a", lse_a, torch.float32, shape)
    check.typed("merge_attention", "lse_b", lse_b, torch.float32, shape)
    return out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)


def _kernel(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = outputs(out_a)
    compiled.merge_attention(out_a, lse_a, out_b, lse_b, out, lse)
    return out, lse


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor, ...]:
    out_a, lse_a, out_b, lse_b, out, lse = ctx.saved_tensors
    g = grad_out.float()
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    grads: list[Tensor] = []
    for part, part_lse in ((out_a, lse_a), (out_b, lse_b)):
        weight = (part_lse - safe).exp()
        # d out / d lse_part = weight * (part - out); d lse / d lse_part = weight.
        slope = (g * (part.float() - out.float())).sum(-1).T + grad_lse
        grads += [(weight.T[..., None] * g).to(part.dtype), weight * slope]
    return tuple(grads)


OP = define(
    "merge_attention(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) -> (Tensor, Tensor)",
    kernel=_kernel,
    reference=reference.merge_attention,
    fake=_fake,
    cuda=True,
    backward=_backward,
    save=_save,
)


def merge_attention(out_a: Array, lse_a: Array, out_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """Attention over the union of two disjoint sets of keys, from the results over each.

    Args:
        out_a, out_b: float32 or bfloat16 ``[T, H, D]``, contiguous.
        lse_a, lse_b: float32 ``[H, T]``, natural log-sum-exp; -inf where no key was seen.

    Returns:
        (out, lse) of the same shapes. Differentiable in all four.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride or device is wrong.
    """
    if not isinstance(out_a, Tensor):
        return through_torch(merge_attention, out_a, lse_a, out_b, lse_b)
    needs_grad = any_requires_grad(out_a, lse_a, out_b, lse_b)
    return call(OP, needs_grad, out_a, lse_a, out_b, lse_b)
