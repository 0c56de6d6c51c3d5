"""The gate of a SwiGLU layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import Array, any_requires_grad, call, define, through_torch


def _fake(gate: Tensor, up: Tensor) -> Tensor:
    check.floating("silu_mul", "gate", gate)
    check.typed("silu_mul", "up", up, gate.dtype, tuple(gate.shape))
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


def _kernel(gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    compiled.silu_mul(gate, up, out)
    return out


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = ctx.saved_tensors
    g, x, u = grad.float(), gate.float(), up.float()
    s = torch.sigmoid(x)
    return (g * u * s * (1 + x * (1 - s))).to(gate.dtype), (g * x * s).to(up.dtype)


OP = define(
    "silu_mul(Tensor gate, Tensor up) -> Tensor",
    kernel=_kernel,
    reference=reference.silu_mul,
    fake=_fake,
    cuda=True,
    backward=_backward,
    save=_save,
)


def silu_mul(gate: Array, up: Array) -> Array:
    """``gate * sigmoid(gate) * up``, elementwise in float32. Differentiable.

    Args:
        gate: float32 or bfloat16 ``[..., D]``; rows may be strided, unit stride in D.
        up: of gate's shape and dtype.

    Returns:
        A new contiguous tensor of gate's shape and dtype.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride or device is wrong.
    """
    if not isinstance(gate, Tensor):
        return through_torch(silu_mul, gate, up)
    return call(OP, any_requires_grad(gate, up), gate, up)
