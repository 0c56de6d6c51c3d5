"""Attention over a paged cache: decode and chunked prefill."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import AnyArray, Array, call_detached, define, outputs, through_torch
from .attention import HEAD_DIM_MAX, NO_WINDOW, window_bounds
from .paged_append import check_pages, check_table
from .rotate import as_times


def _fake(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lengths: Tensor,
    times: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
) -> tuple[Tensor, Tensor]:
    op = "paged_attention"
    check.floating(op, "q", q, 3)
    check.offsets(op, "cu_seqlens_q", cu_seqlens_q)
    check.typed(op, "kv_lengths", kv_lengths, torch.int32, (cu_seqlens_q.shape[0] - 1,))
    requests = kv_lengths.shape[0]
    check_pages(op, q, k_pages, v_pages, k_scales, v_scales, page_table, requests)
    heads, dim = k_pages.shape[1], k_pages.shape[3]
    check.require(
        dim == q.shape[2] and heads > 0 and q.shape[1] % heads == 0,
        f"paged_attention: k_pages must be [P, Hkv, slot, {q.shape[2]}] with Hkv dividing "
        f"{q.shape[1]}, got {check.describe(k_pages)}",
    )
    check.require(
        0 < dim <= HEAD_DIM_MAX, f"paged_attention: q's head dim must be 1 to {HEAD_DIM_MAX}"
    )
    if inv_freq is not None:
        assert times is not None
        check.typed(op, "rotation times", times, torch.float32, (q.shape[0],))
        check.typed(op, "rotation inv_freq", inv_freq, torch.float32, (inv_freq.shape[-1],))
        check.require(
            2 * inv_freq.shape[0] <= dim,
            f"paged_attention: rotation inv_freq turns 2 x {inv_freq.shape[0]} of {dim} channels",
        )
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


def _kernel(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lengths: Tensor,
    times: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
) -> tuple[Tensor, Tensor]:
    out, lse = outputs(q)
    compiled.paged_attention(
        q, k_pages, v_pages, page_table, cu_seqlens_q, kv_lengths, times, inv_freq, interleaved,
        causal, window_left, window_right, scale, k_scales, v_scales, out, lse,
    )  # fmt: skip
    return out, lse


def _reference(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lengths: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    check.offset_values("paged_attention", "cu_seqlens_q", cu_seqlens_q, q.shape[0])
    lengths = kv_lengths.tolist()
    first = [0] * len(lengths)
    check_table("paged_attention", k_pages, page_table, first, lengths, "kv_lengths")
    return reference.paged_attention(
        q, k_pages, v_pages, page_table, cu_seqlens_q, kv_lengths, *rest
    )


OP = define(
    "paged_attention(Tensor q, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor cu_seqlens_q, "
    "Tensor kv_lengths, Tensor? times, Tensor? inv_freq, bool interleaved, bool causal, "
    "int window_left, int window_right, float scale, Tensor? k_scales, Tensor? v_scales) "
    "-> (Tensor, Tensor)",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    cuda=True,
    host=("page_table", "cu_seqlens_q", "kv_lengths"),
)


def head_dim(q: Tensor) -> int:
    """D of ``q [T, Hq, D]``; a kernel refuses one of 0."""
    shape = q.shape
    if len(shape) != 3:
        raise ValueError(f"paged_attention: q must be [T, Hq, D], got {check.describe(q)}")
    return shape[2]


def paged_attention(
    q: Array,
    k_pages: AnyArray,
    v_pages: AnyArray,
    page_table: AnyArray,
    cu_seqlens_q: AnyArray,
    kv_lengths: AnyArray,
    *,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    softmax_scale: float | None = None,
    rotation: tuple[AnyArray, Array] | None = None,
    interleaved: bool = False,
    k_scales: Array | None = None,
    v_scales: Array | None = None,
) -> tuple[Array, Array]:
    """Attention of each request's last queries over its pages.

    The queries of request n are its last ``cu_seqlens_q[n + 1] - cu_seqlens_q[n]`` tokens, which were
    appended before the call: one of them is decode, several are a chunk of prefill. A request's result is
    the same, bit for bit, whatever else is in the batch and wherever its pages are.

    Args:
        q: float32 or bfloat16 (on CUDA float16 too) ``[T, Hq, D]``, unit stride in D.
        k_pages, v_pages: ``[P, Hkv, slot, D]``, contiguous, of q's dtype, int8 or, on CUDA, float8_e4m3fn;
            keys already turned.
        page_table: int32 ``[N, max_pages]``.
        cu_seqlens_q: int32 ``[N + 1]``.
        kv_lengths: int32 ``[N]``, tokens each request holds. These three are best on the CPU.
        causal, window, softmax_scale: as in ``attention``, aligned at the bottom right.
        rotation: (times ``[T]`` int or float32, inv_freq float32 ``[R / 2]``) that turns q.
        interleaved: pairs of the rotation are (2i, 2i + 1).
        k_scales, v_scales: float32 ``[P, Hkv, slot]`` beside pages of 8 bits, as ``paged_append`` wrote them.

    Returns:
        out ``[T, Hq, D]`` and lse, float32 ``[Hq, T]``.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride, device or page id is wrong.
    """
    if not isinstance(q, Tensor):
        return through_torch(
            paged_attention, q, k_pages, v_pages, page_table, cu_seqlens_q, kv_lengths, causal=causal,
            window=window, softmax_scale=softmax_scale, rotation=rotation, interleaved=interleaved,
            k_scales=k_scales, v_scales=v_scales,
        )  # fmt: skip
    dim = head_dim(q)
    times = inv_freq = None
    if rotation is not None:
        times, inv_freq = rotation
        times = as_times(times)
    left, right = NO_WINDOW if window is None else window_bounds("paged_attention", window)
    scale = (dim or 1) ** -0.5 if softmax_scale is None else softmax_scale
    return call_detached(
        OP, q, k_pages, v_pages, page_table, cu_seqlens_q, kv_lengths, times, inv_freq,
        interleaved, causal, left, right, scale, k_scales, v_scales,
    )  # fmt: skip
