"""RMS norm, alone or fused with the residual addition before it."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import Array, any_requires_grad, as_rows, call, define, through_torch


def _check_args(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    check.floating("rms_norm", "x", x)
    check.require(x.dim() >= 1, f"rms_norm: x must be [..., D], got {check.describe(x)}")
    check.typed("rms_norm", "weight", weight, x.dtype, (x.shape[-1],))
    if residual is not None:
        check.typed("rms_norm", "residual", residual, x.dtype, tuple(x.shape))


def _new(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check_args(x, weight, None)
    return _new(x)


def _fake_add(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check_args(x, weight, residual)
    return _new(x), _new(x)


def _kernel(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = _new(x)
    compiled.rms_norm(x, None, weight, eps, out, None)
    return out


def _kernel_add(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, total = _new(x), _new(x)
    compiled.rms_norm(x, residual, weight, eps, out, total)
    return out, total


def _grads(grad: Tensor, total: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, g = total.float(), grad.float()
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    normed = x * scale
    gw = g * weight.float()
    dx = scale * (gw - normed * (gw * normed).mean(-1, keepdim=True))
    dw = as_rows(g * normed).sum(0)
    return dx.to(total.dtype), dw.to(weight.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    return *_grads(grad, x, weight, ctx.eps), None


def _save_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.eps = inputs[3]
    ctx.save_for_backward(output[1], inputs[2])


def _backward_add(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Any, ...]:
    total, weight = ctx.saved_tensors
    dx, dw = _grads(grad, total, weight, ctx.eps)
    dx = dx + grad_total
    return dx, dx, dw, None


OP = define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    kernel=_kernel,
    reference=lambda x, weight, eps: reference.rms_norm(x, weight, eps, None)[0],
    fake=_fake,
    cuda=True,
    backward=_backward,
    save=_save,
)
OP_ADD = define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
    kernel=_kernel_add,
    reference=lambda x, residual, weight, eps: reference.rms_norm(x, weight, eps, residual),
    fake=_fake_add,
    cuda=True,
    backward=_backward_add,
    save=_save_add,
)


@overload
def rms_norm(x: Array, weight: Array, eps: float, residual: None = None) -> Array: ...
@overload
def rms_norm(x: Array, weight: Array, eps: float, residual: Array) -> tuple[Array, Array]: ...
def rms_norm(
    x: Array, weight: Array, eps: float, residual: Array | None = None
) -> Array | tuple[Array, Array]:
    """``weight * (t / sqrt(mean(t**2) + eps))`` over the last axis, with ``t = x + residual``.

    The norm is taken in float32, rounded to x's dtype, then multiplied by ``weight``: the order of
    transformers' ``Qwen2RMSNorm``. Differentiable.

    Args:
        x: float32 or bfloat16 ``[..., D]``.
        weight: ``[D]``, of x's dtype.
        eps: added to the mean square; 0 or more.
        residual: ``[..., D]``, added to x first.

    Returns:
        The norm; with ``residual``, the pair (norm, x + residual).

    Raises:
        ValueError: naming the argument whose dtype, shape, stride, device or value is wrong.
    """
    if not isinstance(x, Tensor):
        return through_torch(rms_norm, x, weight, eps, residual)
    check.epsilon("rms_norm", eps)
    if residual is None:
        return call(OP, any_requires_grad(x, weight), x, weight, eps)
    return call(OP_ADD, any_requires_grad(x, residual, weight), x, residual, weight, eps)
