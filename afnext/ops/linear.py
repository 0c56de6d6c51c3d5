"""Linear layer: ``x @ weight.T + bias``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import any_requires_grad, call, define, through_torch


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check.floating("linear", "x", x)
    check.floating("linear", "weight", weight, 2, like=x)
    check.require(
        x.dim() >= 1 and x.shape[-1] == weight.shape[1],
        f"linear: x must be [..., {weight.shape[1]}] for weight {list(weight.shape)}, got {list(x.shape)}",
    )
    if bias is not None:
        check.typed("linear", "bias", bias, x.dtype, (weight.shape[0],))
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    if x.dim() > 2 and not x.is_contiguous():  # a view where rows lie evenly, else a copy
        compiled.linear(x.flatten(0, -2), weight, bias, out.flatten(0, -2))
    else:
        compiled.linear(x, weight, bias, out)
    return out


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    rows = grad.reshape(-1, grad.shape[-1])
    dx = (grad @ weight) if ctx.needs_input_grad[0] else None
    dw = (rows.T @ x.reshape(-1, x.shape[-1])) if ctx.needs_input_grad[1] else None
    db = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
    return dx, dw, db


OP = define(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    cpu=_cpu,
    reference=reference.linear,
    fake=_fake,
    backward=_backward,
    save=_save,
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` with float32 accumulation. Differentiable.

    Args:
        x: float32 or bfloat16 ``[..., K]``, unit stride in K.
        weight: ``[N, K]``, of x's dtype, unit stride in K.
        bias: ``[N]`` or None.

    Returns:
        ``[..., N]`` of x's dtype.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride or device is wrong.
    """
    if not isinstance(x, Tensor):
        return through_torch(linear, x, weight, bias)
    return call(OP, any_requires_grad(x, weight, bias), x, weight, bias)
