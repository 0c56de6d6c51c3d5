"""Linear layer: ``x @ weight.T + bias``, and what commonly follows it where the weight is packed."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import (
    Array,
    any_requires_grad,
    as_rows,
    call,
    call_detached,
    define,
    refuse_tangents,
    through_torch,
)
from .pack import DTYPES, PackedWeight, unpack
from .quantize import QuantizedWeight


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
    rows = as_rows(grad)
    dx = (grad @ weight) if ctx.needs_input_grad[0] else None
    dw = (rows.T @ as_rows(x)) if ctx.needs_input_grad[1] else None
    db = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
    return dx, dw, db


OP = define(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    kernel=_cpu,
    reference=reference.linear,
    fake=_fake,
    backward=_backward,
    save=_save,
)


def _packed_shape(
    x: Tensor,
    data: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    format: str,
    n: int,
    k: int,
    gate_up: bool,
    activation: str,
) -> Tensor:
    check.floating("linear", "x", x)
    check.require(
        x.dim() >= 1 and x.shape[-1] == k,
        f"linear: x must be [..., {k}] for the packed weight [{n}, {k}], got {list(x.shape)}",
    )
    if data.device.type == "cuda" and x.dtype not in (torch.float32, DTYPES.get(format, x.dtype)):
        raise ValueError(f"linear: x must be {format} like the packed weight")
    check.require(
        activation in ("", "gelu", "silu_mul"),
        f"linear: activation must be gelu or silu_mul, got {activation!r}",
    )
    check.require(
        gate_up == (activation == "silu_mul"),
        "linear: activation must be silu_mul for a gate_up weight"
        if gate_up
        else "linear: activation silu_mul needs a weight packed with gate_up",
    )
    size = compiled.packed_bytes(format, n, k, gate_up, data.device.type == "cuda")
    check.typed("linear", "data", data, torch.uint8, (size,))
    if bias is not None:
        check.typed("linear", "bias", bias, x.dtype, (n,))
    shape = (*x.shape[:-1], n // 2 if gate_up else n)
    if residual is not None:
        check.typed("linear", "residual", residual, x.dtype, shape)
    return x.new_empty(shape)


CUDA_ROWS = 64  # of x, that the kernel for packed weights takes


def multiply_unpacked(
    x: Tensor,
    data: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    format: str,
    n: int,
    k: int,
    gate_up: bool,
    activation: str,
) -> Tensor:
    """Many rows of x on CUDA: the weight is unpacked into x's dtype, and torch multiplies."""
    out = _packed_shape(x, data, bias, residual, format, n, k, gate_up, activation)
    rows = as_rows(x)
    weight = unpack(data, format, n, k, gate_up, x.dtype)
    if activation == "" and residual is None:
        return F.linear(rows, weight, bias).view(out.shape)
    if x.dtype == torch.float32:
        sums = rows @ weight.T
    else:
        sums = torch.mm(rows, weight.T, out_dtype=torch.float32)
    if bias is not None:
        sums += bias
    if activation == "gelu":
        sums = 0.5 * sums * torch.erfc(-math.sqrt(0.5) * sums)  # 1 + erf would cancel
    elif activation == "silu_mul":
        sums = F.silu(sums[:, : n // 2]) * sums[:, n // 2 :]
    if residual is not None:
        sums += residual.reshape(sums.shape)
    return out.copy_(sums.view(out.shape))


def _packed(
    x: Tensor,
    data: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    format: str,
    n: int,
    k: int,
    gate_up: bool,
    activation: str,
) -> Tensor:
    if x.is_cuda and (x.shape[:-1].numel() > CUDA_ROWS or x.dtype == torch.float32):
        with torch.cuda.nvtx.range("linear"):  # as the kernel's call is one in a profile
            return multiply_unpacked(x, data, bias, residual, format, n, k, gate_up, activation)
    out = x.new_empty((*x.shape[:-1], n // 2 if gate_up else n))
    rows, rows_out = x, out
    if x.dim() > 2 and not x.is_contiguous():
        rows, rows_out = x.flatten(0, -2), out.flatten(0, -2)
        residual = None if residual is None else residual.flatten(0, -2)
    if residual is not None:
        residual = residual.contiguous()
    compiled.packed_linear(rows, data, bias, residual, format, n, k, gate_up, activation, rows_out)
    return out


PACKED_OP = define(
    "packed_linear(Tensor x, Tensor data, Tensor? bias, Tensor? residual, str format, int n, int k, "
    "bool gate_up, str activation) -> Tensor",
    kernel=_packed,
    reference=reference.packed_linear,
    fake=_packed_shape,
    cuda=True,
)


def linear(
    x: Array,
    weight: Array | PackedWeight,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """``activation(x @ weight.T + bias) + residual`` with float32 accumulation, rounded once.

    Differentiable with a plain weight; a packed one is for inference. On CUDA, products of a packed weight
    take x as it is, in 16 bits, never rounded to integers. Up to 64 rows of x read the packed weight itself;
    for more of them, or float32, it is first unpacked into x's dtype (its dequantised values are rounded to
    it), and torch multiplies.

    Args:
        x: float32 or bfloat16 (on CUDA also float16) ``[..., K]``, unit stride in K.
        weight: ``[N, K]``, of x's dtype, unit stride in K; or the result of ``ops.pack``, of any format.
        bias: ``[N]`` of x's dtype or None.
        activation: None, "gelu" (the one with erf), or "silu_mul" with a weight that was packed with
            ``gate_up``: ``silu(gate) * up``. Packed weights only.
        residual: of the output's shape and dtype, added in float32. Packed weights only.

    Returns:
        ``[..., N]`` of x's dtype (``[..., N / 2]`` for "silu_mul").

    Raises:
        ValueError: naming the argument whose dtype, shape, stride or device is wrong.
    """
    if not isinstance(x, Tensor):
        return through_torch(linear, x, weight, bias, activation=activation, residual=residual)
    if not isinstance(weight, Tensor | PackedWeight):
        hint = " (ops.pack it)" if isinstance(weight, QuantizedWeight) else ""
        raise ValueError(
            f"linear: weight must be a tensor or a PackedWeight, got {type(weight).__name__}{hint}"
        )
    for name, value in (("bias", bias), ("residual", residual)):
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(f"linear: {name} must be a tensor, got {type(value).__name__}")
    if not isinstance(weight, PackedWeight):
        if activation is not None or residual is not None:
            name = "residual" if activation is None else "activation"
            raise ValueError(f"linear: {name} needs a packed weight (ops.pack)")
        return call(OP, any_requires_grad(x, weight, bias), x, weight, bias)
    if any_requires_grad(x, bias, residual):
        raise ValueError(
            "linear: x, bias and residual must not require grad with a packed weight, which is for "
            "inference"
        )
    if forward_ad._current_level >= 0:
        refuse_tangents(PACKED_OP, x, bias, residual)
    w = weight
    return call_detached(
        PACKED_OP, x, w.data, bias, residual, w.kernel, w.n, w.k, w.gate_up, activation or ""
    )
