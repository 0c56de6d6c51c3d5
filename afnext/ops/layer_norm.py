"""Layer norm, alone or of the means of several rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import AnyArray, Array, any_requires_grad, call, define, through_torch


def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: Tensor | None) -> Tensor:
    check.floating("layer_norm", "x", x)
    check.require(x.dim() >= 1, f"layer_norm: x must be [..., D], got {check.describe(x)}")
    check.typed("layer_norm", "weight", weight, x.dtype, (x.shape[-1],))
    check.typed("layer_norm", "bias", bias, x.dtype, (x.shape[-1],))
    if pooled is None:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    check.require(
        pooled.dtype == torch.int64 and pooled.dim() == 2 and pooled.shape[1] > 0,
        f"layer_norm: pooled must be int64 [n, P] with P at least 1, got {check.describe(pooled)}",
    )
    return x.new_empty(pooled.shape[0], x.shape[-1])


def _kernel(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: Tensor | None) -> Tensor:
    if pooled is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    else:
        out = x.new_empty((pooled.shape[0], x.shape[-1]))
    compiled.layer_norm(x, weight, bias, eps, pooled, out)
    return out


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: Tensor | None
) -> Tensor:
    if pooled is not None and pooled.numel() > 0:
        rows = math.prod(x.shape[:-1])
        low, high = int(pooled.min()), int(pooled.max())
        check.require(
            low >= 0 and high < rows,
            f"layer_norm: pooled names row {low if low < 0 else high} of {rows}",
        )
    return reference.layer_norm(x, weight, bias, eps, pooled)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.eps, pooled = inputs
    ctx.save_for_backward(x, weight, pooled)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, pooled = ctx.saved_tensors
    width = x.shape[-1]
    if width == 0:  # of which torch tells neither rows nor a variance
        return torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight), None, None
    rows = x.reshape(-1, width).float()
    t = rows if pooled is None else rows[pooled].mean(1)
    g = grad.reshape(-1, width).float()
    scale = torch.rsqrt(t.var(-1, correction=0, keepdim=True) + ctx.eps)
    normed = (t - t.mean(-1, keepdim=True)) * scale
    gw = g * weight.float()
    dt = scale * (gw - gw.mean(-1, keepdim=True) - normed * (gw * normed).mean(-1, keepdim=True))
    if pooled is not None:
        share = (dt / pooled.shape[1]).repeat_interleave(pooled.shape[1], dim=0)
        dt = torch.zeros_like(rows).index_add_(0, pooled.flatten(), share)
    dx = dt.reshape(x.shape).to(x.dtype)
    return dx, (g * normed).sum(0).to(weight.dtype), g.sum(0).to(weight.dtype), None, None


OP = define(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? pooled) -> Tensor",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    cuda=True,
    backward=_backward,
    save=_save,
)


def layer_norm(
    x: Array, weight: Array, bias: Array, eps: float = 1e-5, pooled: AnyArray | None = None
) -> Array:
    """``weight * (t - mean(t)) / sqrt(var(t) + eps) + bias`` over the last axis.

    Computed in float32 and rounded once. ``t`` is each row of ``x``; with ``pooled``, the mean of the
    rows of ``x`` that a row of ``pooled`` names, so that pooling costs no pass of its own.
    Differentiable.

    Args:
        x: float32 or bfloat16 (CUDA: float16 too) ``[..., D]``.
        weight, bias: ``[D]``, of x's dtype.
        eps: added to the variance; 0 or more.
        pooled: int64 ``[n, P]`` on x's device, indices of rows of x, or None. On CUDA they are not read
            before the kernel runs: one that is out of range makes its row NaN.

    Returns:
        x's shape and dtype; with ``pooled``, ``[n, D]``.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride, device, index or value is wrong.
    """
    if not isinstance(x, Tensor):
        return through_torch(layer_norm, x, weight, bias, eps, pooled)
    check.epsilon("layer_norm", eps)
    return call(OP, any_requires_grad(x, weight, bias), x, weight, bias, eps, pooled)
