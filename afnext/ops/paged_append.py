"""Append keys and values to a paged cache, rotating the keys once on their way in."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import AnyArray, Array, call_detached, define, through_torch
from .rotate import as_times


def check_pages(
    op: str,
    tokens: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    page_table: Tensor,
    requests: int,
) -> None:
    """Pages ``[P, Hkv, slot, D]`` of tokens' dtype, or 8 bits with scales, and a table ``[N, max_pages]``."""
    quantized = k_pages.dtype in (torch.int8, torch.float8_e4m3fn) and k_pages.dim() == 4
    check.require(
        k_pages.dtype != torch.float8_e4m3fn or k_pages.device.type != "cpu",
        f"{op}: k_pages of float8_e4m3fn need a CUDA device: on the CPU take int8",
    )
    if not quantized:
        check.floating(op, "k_pages", k_pages, 4, like=tokens)
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        check.require(
            (scales is not None) == quantized,
            f"{op}: {name} must be given for pages of 8 bits, and for no other",
        )
        if scales is not None:
            check.typed(op, name, scales, torch.float32, tuple(k_pages.shape[:3]))
    check.typed(op, "v_pages", v_pages, k_pages.dtype, tuple(k_pages.shape))
    check.require(k_pages.shape[2] > 0, f"{op}: k_pages must have at least one slot a page")
    check.require(
        page_table.dtype == torch.int32
        and page_table.dim() == 2
        and page_table.shape[0] == requests,
        f"{op}: page_table must be int32 [{requests}, max_pages], got {check.describe(page_table)}",
    )


def check_table(
    op: str, k_pages: Tensor, page_table: Tensor, first: list[int], end: list[int], name: str
) -> None:
    """Tokens ``[first[n], end[n])`` of each request lie in pages of the pool (host copies)."""
    table, pool, slots = page_table.cpu(), k_pages.shape[0], k_pages.shape[2]
    for n, (low, high) in enumerate(zip(first, end, strict=True)):
        used = -(-high // slots)
        check.require(
            high >= 0 and used <= table.shape[1],
            f"{op}: {name}[{n}] = {high} needs {used} pages, page_table has {table.shape[1]}",
        )
        for page in table[n, low // slots : used].tolist():
            check.require(
                0 <= page < pool, f"{op}: page_table[{n}] holds page {page} of a pool of {pool}"
            )


def _fake(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    start: Tensor,
    times: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
) -> None:
    op = "paged_append"
    check.floating(op, "k", k, 3)
    check.typed(op, "v", v, k.dtype, tuple(k.shape))
    check.offsets(op, "cu_seqlens", cu_seqlens)
    check.typed(op, "start", start, torch.int32, (cu_seqlens.shape[0] - 1,))
    check_pages(op, k, k_pages, v_pages, k_scales, v_scales, page_table, start.shape[0])
    check.require(
        (k_pages.shape[1], k_pages.shape[3]) == tuple(k.shape[1:]),
        f"paged_append: k_pages must be [P, {k.shape[1]}, slot, {k.shape[2]}], got "
        f"{check.describe(k_pages)}",
    )
    if inv_freq is not None:
        assert times is not None
        check.typed(op, "rotation times", times, torch.float32, (k.shape[0],))
        check.typed(op, "rotation inv_freq", inv_freq, torch.float32, (inv_freq.shape[-1],))
        check.require(
            2 * inv_freq.shape[0] <= k.shape[2],
            f"paged_append: rotation inv_freq turns 2 x {inv_freq.shape[0]} of {k.shape[2]} channels",
        )


def _reference(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    start: Tensor,
    *rest: object,
) -> None:
    op = "paged_append"
    ends = check.offset_values(op, "cu_seqlens", cu_seqlens, k.shape[0])
    first = start.tolist()
    for n, value in enumerate(first):
        check.require(value >= 0, f"{op}: start[{n}] must not be negative")
    # A request without new tokens touches no page.
    end = [s + b - a if b > a else 0 for s, (a, b) in zip(first, pairwise(ends), strict=True)]
    check_table(op, k_pages, page_table, first, end, "start + length")
    reference.paged_append(k, v, k_pages, v_pages, page_table, cu_seqlens, start, *rest)  # type: ignore[arg-type]


def _kernel(*args: Any) -> None:
    compiled.paged_append(*args)


OP = define(
    "paged_append(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor page_table, "
    "Tensor cu_seqlens, Tensor start, Tensor? times, Tensor? inv_freq, bool interleaved, "
    "Tensor(c!)? k_scales, Tensor(d!)? v_scales) -> ()",
    kernel=_kernel,
    reference=_reference,
    fake=_fake,
    cuda=True,
    host=("page_table", "cu_seqlens", "start"),
)


def paged_append(
    k: Array,
    v: Array,
    k_pages: AnyArray,
    v_pages: AnyArray,
    page_table: AnyArray,
    cu_seqlens: AnyArray,
    start: AnyArray,
    *,
    rotation: tuple[AnyArray, Array] | None = None,
    interleaved: bool = False,
    k_scales: Array | None = None,
    v_scales: Array | None = None,
) -> None:
    """Write new keys and values into their pages, in place.

    Token t of request n goes to slot ``(start[n] + t) % slot`` of page
    ``page_table[n, (start[n] + t) // slot]``. Nothing is written when an argument is refused.

    Args:
        k, v: float32 or bfloat16 (on CUDA float16 too, and D up to 256) ``[T, Hkv, D]``, unit stride in D.
        k_pages, v_pages: ``[P, Hkv, slot, D]``, contiguous, of k's dtype, int8 or, on CUDA,
            float8_e4m3fn; changed in place.
        page_table: int32 ``[N, max_pages]``, page ids; entries past a request's pages may be anything.
        cu_seqlens: int32 ``[N + 1]``, where requests begin and end among the new tokens.
        start: int32 ``[N]``, tokens each request holds already. This and the two above are best on the CPU.
        rotation: (times ``[T]`` int or float32, inv_freq float32 ``[R / 2]``) that turns k.
        interleaved: pairs of the rotation are (2i, 2i + 1).
        k_scales, v_scales: float32 ``[P, Hkv, slot]`` beside pages of 8 bits; changed in place. Rows of
            a token and head are quantised symmetrically, the largest magnitude to 127 or, in float8, 448.

    Raises:
        ValueError: naming the argument whose dtype, shape, stride, device or page id is wrong.
    """
    if not isinstance(k, Tensor):
        changed = {
            "k_pages": k_pages,
            "v_pages": v_pages,
            "k_scales": k_scales,
            "v_scales": v_scales,
        }
        for name, pages in changed.items():
            if not isinstance(pages, np.ndarray):
                continue
            check.require(pages.flags.writeable, f"paged_append: {name} must be writeable")
            # Else torch would hold a copy, and the caller's pages would stay as they are.
            check.require(
                pages.flags.c_contiguous and pages.dtype.isnative,
                f"paged_append: {name} must be contiguous and in this machine's byte order",
            )
        through_torch(
            paged_append, k, v, k_pages, v_pages, page_table, cu_seqlens, start,
            rotation=rotation, interleaved=interleaved, k_scales=k_scales, v_scales=v_scales,
        )  # fmt: skip
        return
    times, inv_freq = (as_times(rotation[0]), rotation[1]) if rotation is not None else (None, None)
    call_detached(
        OP, k, v, k_pages, v_pages, page_table, cu_seqlens, start, times, inv_freq, interleaved,
        k_scales, v_scales,
    )  # fmt: skip
