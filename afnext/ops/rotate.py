"""Rotary embedding by position or by time: one op, since an integer position is a time too."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import AnyArray, Array, any_requires_grad, call, define, through_torch


class Rotation(NamedTuple):
    """How attention turns its queries and keys.

    Attributes:
        times_q: int or float32 ``[Tq]``, positions or seconds of the queries.
        times_k: the same for the keys ``[Tk]``.
        inv_freq: float32 ``[R / 2]``, radians per unit of time.
        interleaved: pairs (2i, 2i + 1) instead of (i, i + R/2).
    """

    times_q: Tensor
    times_k: Tensor
    inv_freq: Tensor
    interleaved: bool = False


def as_times(times: AnyArray) -> Any:
    """Times as float32; integers up to 2**24 are exact. What is no tensor is refused by the call."""
    if not isinstance(times, Tensor) or times.dtype is torch.float32:
        return times
    return times.to(torch.float32)


def _fake(
    x: Tensor,
    times: Tensor | None,
    inv_freq: Tensor | None,
    angles: Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> Tensor:
    check.floating("rotate", "x", x, 3)
    if angles is not None:
        half = angles.shape[-1]
        check.typed("rotate", "angles", angles, torch.float32, (x.shape[0], half))
    else:
        check.require(
            times is not None and inv_freq is not None, "rotate: give times and inv_freq, or angles"
        )
        assert times is not None
        assert inv_freq is not None
        half = inv_freq.shape[-1]
        check.typed("rotate", "times", times, torch.float32, (x.shape[0],))
        check.typed("rotate", "inv_freq", inv_freq, torch.float32, (half,))
    check.require(
        2 * half <= x.shape[2],
        f"rotate: 2 x {half} channels do not fit x {check.describe(x)}",
    )
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _kernel(
    x: Tensor,
    times: Tensor | None,
    inv_freq: Tensor | None,
    angles: Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    compiled.rotate(x, times, inv_freq, angles, interleaved, inverse, out)
    return out


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, times, inv_freq, angles, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(times, inv_freq, angles)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if grad.stride(-1) != 1:  # as the gradient of a sum has it
        grad = grad.contiguous()
    turned = OP.default(grad, *ctx.saved_tensors, ctx.interleaved, not ctx.inverse)
    return turned, None, None, None, None, None


OP = define(
    "rotate(Tensor x, Tensor? times, Tensor? inv_freq, Tensor? angles, bool interleaved, "
    "bool inverse) -> Tensor",
    kernel=_kernel,
    reference=reference.rotate,
    fake=_fake,
    cuda=True,
    backward=_backward,
    save=_save,
)


def rotate(
    x: Array,
    times: AnyArray | None = None,
    inv_freq: Array | None = None,
    *,
    angles: Array | None = None,
    interleaved: bool = False,
    inverse: bool = False,
) -> Array:
    """Turn pairs of channels of ``x`` by ``times * inv_freq`` radians.

    ``(a, b) -> (a cos p - b sin p, b cos p + a sin p)``. Phases are range-reduced: within 1e-6 rad of
    float64 on the same float32 inputs, at times up to 1e6. Differentiable in ``x``.

    Args:
        x: float32 or bfloat16 ``[T, H, D]`` or ``[T, D]``, unit stride in D.
        times: int or float32 ``[T]``, positions or seconds.
        inv_freq: float32 ``[R / 2]``, radians per unit of time; the first R <= D channels turn.
        angles: float32 ``[T, R / 2]``, given instead of ``times`` and ``inv_freq``.
        interleaved: pairs are (2i, 2i + 1) instead of (i, i + R/2).
        inverse: turn the other way.

    Returns:
        A new contiguous tensor of ``x``'s shape and dtype.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride or device is wrong.
    """
    if not isinstance(x, Tensor):
        return through_torch(
            rotate, x, times, inv_freq, angles=angles, interleaved=interleaved, inverse=inverse
        )
    if times is not None:
        times = as_times(times)
    flat = x.dim() == 2
    out = call(
        OP,
        any_requires_grad(x),
        x[:, None] if flat else x,
        times,
        inv_freq,
        angles,
        interleaved,
        inverse,
    )
    return out[:, 0] if flat else out
