"""Pages full of NaN but for the tokens of a batch, at random places, and what attention over them gives."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.cuda.harness import Kernels

BYTES = (torch.int8, torch.float8_e4m3fn)
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def offsets(lengths: list[int]) -> Tensor:
    return int32([0, *torch.tensor(lengths).cumsum(0).tolist()])


@dataclass
class Pages:
    """Keys and values ``[P, Hkv, slot, D]``, their scales where they are of 8 bits, and the table."""

    k: Tensor
    v: Tensor
    k_scales: Tensor | None
    v_scales: Tensor | None
    table: Tensor
    lengths: list[int]

    def held(self, which: str, n: int) -> Tensor:
        """Request n's tokens in float64, ``[length, Hkv, D]``, one by one."""
        pages, scales = getattr(self, which), getattr(self, f"{which}_scales")
        slots, rows = pages.shape[2], []
        for t in range(self.lengths[n]):
            at = (int(self.table[n, t // slots]), slice(None), t % slots)
            row = pages[at].double()
            rows.append(row if scales is None else row * scales[at].double()[:, None])
        return torch.stack(rows) if rows else torch.zeros(0, pages.shape[1], pages.shape[3])


def empty_pages(
    random: torch.Generator,
    lengths: list[int],
    heads: int,
    slots: int,
    dim: int,
    dtype: torch.dtype,
) -> Pages:
    """Room for ``lengths`` tokens; ids past a request's pages are garbage."""
    used = [-(-length // slots) for length in lengths]
    pool = torch.randperm(sum(used) + 3, generator=random).tolist()
    table = torch.full((len(lengths), max([*used, 0]) + 1), -(2**31), dtype=torch.int32)
    for n, count in enumerate(used):
        table[n, :count] = int32([pool.pop() for _ in range(count)])
    shape = (sum(used) + 3, heads, slots, dim)
    fill = torch.full(shape, 77 if dtype == torch.int8 else math.nan).to(dtype)
    scales = [torch.full(shape[:3], math.nan) if dtype in BYTES else None for _ in range(2)]
    return Pages(fill, fill.clone(), scales[0], scales[1], table, lengths)


def quantized(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows ``[..., D]`` in 8 bits and their scales, the largest magnitude at the end of the range."""
    scales = rows.float().abs().amax(-1) / LARGEST[dtype]
    whole = rows.float() / scales[..., None]
    return (whole.round() if dtype == torch.int8 else whole).to(dtype), scales


def filled_pages(
    random: torch.Generator,
    lengths: list[int],
    heads: int,
    slots: int,
    dim: int,
    dtype: torch.dtype,
) -> Pages:
    """Normal keys and values in every slot that a request holds."""
    pages = empty_pages(random, lengths, heads, slots, dim, dtype)
    for n, length in enumerate(lengths):
        for which in ("k", "v"):
            rows = torch.randn(length, heads, dim, generator=random)
            scales = None
            if dtype in BYTES:
                rows, scales = quantized(rows, dtype)
            for t in range(length):
                at = (int(pages.table[n, t // slots]), slice(None), t % slots)
                getattr(pages, which)[at] = rows[t].to(dtype)
                if scales is not None:
                    getattr(pages, f"{which}_scales")[at] = scales[t]
    return pages


def turned(x: Tensor, times: Tensor, inv_freq: Tensor, interleaved: bool) -> Tensor:
    """Pairs of ``x [T, H, D]`` turned by time * inv_freq, in float64."""
    half = len(inv_freq)
    phase = times.double()[:, None, None] * inv_freq.double()
    wide = x.double()
    a, b = (
        (wide[..., : 2 * half : 2], wide[..., 1 : 2 * half : 2])
        if interleaved
        else (wide[..., :half], wide[..., half : 2 * half])
    )
    low, high = a * phase.cos() - b * phase.sin(), b * phase.cos() + a * phase.sin()
    pairs = torch.stack((low, high), -1).flatten(-2) if interleaved else torch.cat((low, high), -1)
    return torch.cat((pairs, wide[..., 2 * half :]), -1)


def attention(
    q: Tensor, pages: Pages, lengths_q: list[int], causal: bool, window: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """float64 attention of ``q [T, Hq, D]`` over what the pages hold: (out, lse)."""
    outs, lses, at = [], [], 0
    for n, (queries, keys) in enumerate(zip(lengths_q, pages.lengths, strict=True)):
        k, v = pages.held("k", n), pages.held("v", n)
        group = q.shape[1] // k.shape[1]
        qn = q[at : at + queries].double().transpose(0, 1)
        kn, vn = (t.double().repeat_interleave(group, dim=1).transpose(0, 1) for t in (k, v))
        at += queries
        scores = qn @ kn.transpose(1, 2) * q.shape[2] ** -0.5
        here, key = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)
        hidden = (key > here) & causal
        hidden |= (key < here - window[0]) & (window[0] >= 0)
        hidden |= (key > here + window[1]) & (window[1] >= 0)
        blind = hidden.all(1)
        scores = scores.masked_fill(hidden & ~blind[:, None], -math.inf)
        weights = torch.softmax(scores, -1).masked_fill(blind[:, None], 0)
        outs.append((weights @ vn).transpose(0, 1))
        lses.append(torch.logsumexp(scores, -1).masked_fill(blind, -math.inf))
    return torch.cat(outs), torch.cat(lses, 1)


class DeviceWords:
    """int32 on a GPU, as PyTorch reads it."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": "<i4", "data": (address, False), "version": 3,
        }  # fmt: skip


def write_word(kernels: Kernels, plan: Any, index: int, value: int) -> None:
    """Writes over what a plan has on the device, as a stray kernel might."""
    address, count = plan.words()
    if kernels.emulated:
        (ctypes.c_int32 * count).from_address(address)[index % count] = value
    else:
        torch.as_tensor(DeviceWords(address, count), device="cuda")[index] = value


def assert_refused(said: str, call: Callable[..., object], *args: object) -> None:
    """``call`` raises a ValueError that says so."""
    try:
        call(*args)
    except ValueError as error:
        assert re.search(said, str(error)), error  # noqa: PT017
    else:
        raise AssertionError(f"nobody said {said}")
