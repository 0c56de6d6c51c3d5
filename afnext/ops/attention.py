"""Softmax attention over packed sequences, forward and backward, and the merge of partial results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import (
    AnyArray,
    Array,
    any_requires_grad,
    define,
    outputs,
    refusal,
    refuse_tangents,
    through_torch,
)
from .rotate import Rotation, as_times

HEAD_DIM_MAX = 256
NO_WINDOW = (-1, -1)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    key_lengths: Tensor | None,
    times_q: Tensor | None,
    times_k: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    partials: bool,
) -> tuple[Tensor, Tensor]:
    op = "attention"
    check.floating(op, "q", q, 3)
    check.floating(op, "k", k, 3, like=q)
    check.typed(op, "v", v, k.dtype, tuple(k.shape))
    check.require(
        k.shape[2] == q.shape[2] and k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0,
        f"attention: k must be [Tk, Hkv, {q.shape[2]}] with Hkv dividing {q.shape[1]}, got "
        f"{check.describe(k)}",
    )
    check.require(
        0 < q.shape[2] <= HEAD_DIM_MAX, f"attention: q's head dim must be 1 to {HEAD_DIM_MAX}"
    )
    count = 1
    if cu_seqlens_q is not None:
        check.offsets(op, "cu_seqlens_q", cu_seqlens_q)
        count = cu_seqlens_q.shape[0] - 1
    if cu_seqlens_k is not None or count != 1:
        check.require(cu_seqlens_k is not None, "attention: cu_seqlens_k must be given")
        assert cu_seqlens_k is not None
        check.typed(op, "cu_seqlens_k", cu_seqlens_k, torch.int32, (count + 1,))
    if key_lengths is not None:
        check.typed(op, "key_lengths", key_lengths, torch.int32, (count,))
    if inv_freq is not None:
        assert times_q is not None
        assert times_k is not None
        half = inv_freq.shape[-1]
        check.typed(op, "rotation.inv_freq", inv_freq, torch.float32, (half,))
        check.typed(op, "rotation.times_q", times_q, torch.float32, (q.shape[0],))
        check.typed(op, "rotation.times_k", times_k, torch.float32, (k.shape[0],))
        check.require(
            2 * half <= q.shape[2],
            f"attention: rotation.inv_freq turns 2 x {half} of {q.shape[2]} channels",
        )
    out = q.new_empty(q.shape, dtype=torch.float32 if partials else q.dtype)
    return out, q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    key_lengths: Tensor | None,
    *args: Any,
) -> tuple[Tensor, Tensor]:
    """Checks, as the compiled path does, that sequences lie within the tensors."""
    op = "attention"
    if cu_seqlens_q is not None:
        check.offset_values(op, "cu_seqlens_q", cu_seqlens_q, q.shape[0])
    starts = [0, k.shape[0]]
    if cu_seqlens_k is not None:
        starts = check.offset_values(op, "cu_seqlens_k", cu_seqlens_k, k.shape[0])
    for n, length in enumerate(key_lengths.tolist() if key_lengths is not None else []):
        keys = starts[n + 1] - starts[n]
        check.require(
            0 <= length <= keys,
            f"attention: key_lengths[{n}] must be 0 to {keys}, the keys of its sequence, got {length}",
        )
    return reference.attention(q, k, v, cu_seqlens_q, cu_seqlens_k, key_lengths, *args)


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    key_lengths: Tensor | None,
    times_q: Tensor | None,
    times_k: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    partials: bool,
) -> tuple[Tensor, Tensor]:
    out, lse = outputs(q, torch.float32 if partials else None)
    compiled.attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k, key_lengths, times_q, times_k, inv_freq, interleaved,
        causal, window_left, window_right, scale, out, lse,
    )  # fmt: skip
    return out, lse


def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _kernel_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *args: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    compiled.attention_backward(
        grad_out.contiguous(),
        None if grad_lse is None else grad_lse.contiguous(),
        *(q, k, v, out, lse, *args[:-1], *grads),
    )
    return grads


_ARGS = (
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? key_lengths, Tensor? times_q, "
    "Tensor? times_k, Tensor? inv_freq, bool interleaved, bool causal, int window_left, "
    "int window_right, float scale, bool partials"
)

_METADATA = ("cu_seqlens_q", "cu_seqlens_k", "key_lengths")

BACKWARD = define(
    "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, "
    f"Tensor lse, {_ARGS}) -> (Tensor, Tensor, Tensor)",
    kernel=_kernel_backward,
    reference=reference.attention_backward,
    fake=_fake_backward,
    cuda=True,
    host=("cu_seqlens_q", "cu_seqlens_k", "key_lengths"),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_q, cu_k, lengths, times_q, times_k, inv_freq, *ctx.policies = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k, lengths, times_q, times_k, inv_freq)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Any, ...]:
    grads = BACKWARD.default(grad_out, grad_lse, *ctx.saved_tensors, *ctx.policies)
    return *grads, *(None,) * 12


OP = define(
    f"attention(Tensor q, Tensor k, Tensor v, {_ARGS}) -> (Tensor, Tensor)",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    cuda=True,
    host=_METADATA,
    backward=_backward,
    save=_save,
)


def window_bounds(op: str, window: tuple[int, int]) -> tuple[int, int]:
    """``(left, right)`` with -1 for unlimited, checked."""
    check.require(
        len(window) == 2 and all(isinstance(w, int) and w >= -1 for w in window),
        f"{op}: window must be (left, right) with entries >= -1, got {window}",
    )
    return window[0], window[1]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    cu_seqlens_q: AnyArray | None = None,
    cu_seqlens_k: AnyArray | None = None,
    key_lengths: AnyArray | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softmax_scale: float | None = None,
    rotation: Rotation | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Array, Array]:
    """Attention over packed sequences without an S x S buffer. Differentiable in q, k, v; gradients are
    the same to the bit each time, on CUDA too.

    Query head h reads key head ``h // (Hq / Hkv)``. Masks are aligned at the bottom right of each
    sequence: its last query sees its last key. Causality goes by index, never by time.

    Args:
        q: float32 or bfloat16 (on CUDA float16 too) ``[Tq, Hq, D]``, unit stride in D, D <= 256.
        k, v: ``[Tk, Hkv, D]``, Hkv divides Hq.
        cu_seqlens_q: int32 ``[N + 1]``, where sequences begin and end among the queries; None is one.
        cu_seqlens_k: the same among the keys; by default ``cu_seqlens_q``.
        key_lengths: int32 ``[N]``, how many keys of each sequence count. Like the offsets it is best given
            on the CPU: kernels on CUDA are told it from there, and copying it waits for the device.
        causal: a query sees no later key.
        window: (left, right), how many keys before and after its own a query sees; -1 is unlimited.
        softmax_scale: by default ``D ** -0.5``.
        rotation: turns q and k on the way in.
        out_dtype: float32 asks for partial results in float32; by default q's dtype.

    Returns:
        out ``[Tq, Hq, D]`` and lse, float32 ``[Hq, Tq]``, the natural logarithm of the sum of exponents.
        A query that sees no key gives 0 and -inf.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride, device or value is wrong.
        RuntimeError: while a CUDA graph is captured, several sequences, or gradients: the host says what
            they are, and a graph would not have it again.
    """
    if not isinstance(q, Tensor):
        return through_torch(
            attention, q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
            key_lengths=key_lengths, causal=causal, window=window, softmax_scale=softmax_scale,
            rotation=rotation, out_dtype=out_dtype,
        )  # fmt: skip
    shape = q.shape
    if len(shape) != 3:
        raise ValueError(f"attention: q must be [Tq, Hq, D], got {check.describe(q)}")
    if cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
    times_q = times_k = inv_freq = None
    interleaved = False
    if rotation is not None:
        times_q, times_k, inv_freq, interleaved = rotation
        same = times_k is times_q
        times_q = as_times(times_q)
        times_k = times_q if same else as_times(times_k)
    left, right = NO_WINDOW if window is None else window_bounds("attention", window)
    if softmax_scale is None:
        softmax_scale = (shape[2] or 1) ** -0.5
    partials = False
    if out_dtype is not None:
        if out_dtype not in (q.dtype, torch.float32):
            raise ValueError(f"attention: out_dtype must be float32 or q's, got {out_dtype}")
        partials = out_dtype == torch.float32
    if forward_ad._current_level >= 0:
        refuse_tangents(OP, q, k, v)
    op = OP.default if any_requires_grad(q, k, v) else OP.no_grad
    try:
        return op(
            q, k, v, cu_seqlens_q, cu_seqlens_k, key_lengths, times_q, times_k, inv_freq,
            interleaved, causal, left, right, softmax_scale, partials,
        )  # fmt: skip
    except RuntimeError as error:
        raise refusal(error) from error.__cause__
