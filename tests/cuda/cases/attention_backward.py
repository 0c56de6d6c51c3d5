"""Attention's gradients beside float64 autograd: at most twice the error of torch's own in the same
precision, plus rounding. Every case also gives the same bits under every schedule of threads, and reads
matrices from shared memory without conflicts between banks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.cuda.harness import HALVES, Case, Kernels, generator

Window = tuple[int, int]


@dataclass(frozen=True)
class Setting:
    """One call. ``lengths`` are (queries, keys) of each sequence."""

    dtype: torch.dtype
    lengths: tuple[tuple[int, int], ...]
    dim: int = 64
    kv_heads: int = 1
    group: int = 1
    causal: bool = False
    window: Window = (-1, -1)
    key_lengths: tuple[int, ...] | None = None
    rotation: str | None = None  # "half", "interleaved"
    turned: int = 0  # pairs that turn; 0: all
    grad_lse: bool = True
    partials: bool = False  # out and grad_out in float32
    gap: int = 0  # elements between the rows of q, k and v
    scale: float | None = None
    beside_nan: bool = False  # all of the last sequence's rows are NaN: the others must not notice
    sm: int = 80

    @property
    def wgmma(self) -> bool:
        return self.sm == 90 and self.group <= 64 and (self.dim <= 64 or 96 < self.dim <= 128)


def turn(x: Tensor, times: Tensor, inv_freq: Tensor, interleaved: bool) -> Tensor:
    half = len(inv_freq)
    pairs = x[..., : 2 * half].double()
    pairs = pairs.unflatten(-1, (half, 2) if interleaved else (2, half))
    axis = -1 if interleaved else -2
    a, b = pairs.unbind(axis)
    phase = times.double()[:, None, None] * inv_freq.double()
    turned = (a * phase.cos() - b * phase.sin(), a * phase.sin() + b * phase.cos())
    return torch.cat((torch.stack(turned, axis).flatten(-2).to(x.dtype), x[..., 2 * half :]), -1)


def attend(
    s: Setting, q: Tensor, k: Tensor, v: Tensor, rotation: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """(out, lse): a dense masked softmax per sequence, in the inputs' dtype."""
    if rotation is not None:
        times_q, times_k, inv_freq = rotation
        q = turn(q, times_q, inv_freq, s.rotation == "interleaved")
        k = turn(k, times_k, inv_freq, s.rotation == "interleaved")
    scale = s.dim**-0.5 if s.scale is None else s.scale
    outs, lses, at_q, at_k = [], [], 0, 0
    for n, (nq, nk) in enumerate(s.lengths):
        keys = nk if s.key_lengths is None else s.key_lengths[n]
        qn = q[at_q : at_q + nq].transpose(0, 1)
        kn, vn = (
            t[at_k : at_k + keys].repeat_interleave(s.group, 1).transpose(0, 1) for t in (k, v)
        )
        at_q, at_k = at_q + nq, at_k + nk
        scores = qn @ kn.transpose(1, 2) * scale
        own, key = torch.arange(nq)[:, None] + keys - nq, torch.arange(keys)
        left, right = s.window[0], 0 if s.causal else s.window[1]
        hidden = torch.zeros(nq, keys, dtype=torch.bool)
        hidden |= (key < own - left) & (left >= 0)
        hidden |= (key > own + right) & (right >= 0)
        blind = hidden.all(1)  # also where there are no keys
        scores = scores.masked_fill(hidden & ~blind[:, None], -math.inf)
        weights = torch.softmax(scores, -1).masked_fill(blind[:, None], 0.0)
        outs.append((weights @ vn).transpose(0, 1))
        lses.append(torch.logsumexp(scores, -1).masked_fill(blind, -math.inf))
    return torch.cat(outs), torch.cat(lses, 1)


def gradients(
    s: Setting, dtype: torch.dtype, inputs: list[Tensor], grads: list[Tensor],
    rotation: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Results and gradients by autograd in ``dtype``, as float64."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
    results = attend(s, *leaves, rotation)
    found = torch.autograd.grad(
        results, leaves, [g.to(r.dtype) for g, r in zip(grads, results, strict=True)]
    )
    return [r.detach().double() for r in results], [g.double() for g in found]


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


_bits: dict[str, list[Tensor]] = {}


def run(name: str, s: Setting, kernels: Kernels) -> None:
    random = generator(name)
    queries, keys = [q for q, _ in s.lengths], [k for _, k in s.lengths]
    heads = s.kv_heads * s.group

    def draw(tokens: int, count: int) -> Tensor:
        wide = torch.randn(tokens, count, s.dim + s.gap, generator=random).to(s.dtype)
        return wide[..., : s.dim]

    inputs = [draw(sum(queries), heads), draw(sum(keys), s.kv_heads), draw(sum(keys), s.kv_heads)]
    grad_out = torch.randn(sum(queries), heads, s.dim, generator=random)
    grad_lse = torch.randn(heads, sum(queries), generator=random) * s.grad_lse
    if not s.partials:
        grad_out = grad_out.to(s.dtype)
    rotation = None
    if s.rotation is not None:
        # Times to a million of them, integers and not; turns of every speed.
        rotation = (
            (torch.rand(sum(queries), generator=random) * 1e6).round(decimals=1),
            (torch.rand(sum(keys), generator=random) * 1e6).round(),
            10.0 ** -torch.linspace(0, 4, s.turned or s.dim // 2),
        )
    (out, lse), truth = gradients(s, torch.float64, inputs, [grad_out, grad_lse], rotation)
    _, peer = gradients(s, s.dtype, inputs, [grad_out, grad_lse], rotation)
    if s.key_lengths is not None:  # what does not count is not read
        starts = offsets(keys).tolist()
        for n, length in enumerate(s.key_lengths):
            for t in inputs[1:]:
                t[starts[n] + length : starts[n + 1]] = float("nan")

    counted_q, counted_k = sum(queries), sum(keys)
    if s.beside_nan:
        counted_q, counted_k = sum(queries[:-1]), sum(keys[:-1])
        for t in (inputs[0], grad_out):
            t[counted_q:] = float("nan")

    times_q, times_k, inv_freq = map(kernels.put, rotation or (None, None, None))
    lengths = None if s.key_lengths is None else torch.tensor(s.key_lengths, dtype=torch.int32)
    results = [kernels.empty(*t.shape, dtype=s.dtype) for t in inputs]
    before: dict[str, Any] = {}
    if kernels.emulated:
        kernels.compiled.set_emulated_device(sm=s.sm)
        before = kernels.compiled.emulation_counters()
    kernels.compiled.attention_backward(
        kernels.put(grad_out),
        kernels.put(grad_lse) if s.grad_lse else None,
        *map(kernels.put, inputs),
        kernels.put(out.float() if s.partials else out.to(s.dtype)),
        kernels.put(lse.float()),
        offsets(queries), offsets(keys), lengths, times_q, times_k, inv_freq,
        s.rotation == "interleaved", s.causal, *s.window,
        s.dim**-0.5 if s.scale is None else s.scale, *results,
    )  # fmt: skip
    if kernels.emulated:
        kernels.compiled.set_emulated_device(sm=90)
        after = kernels.compiled.emulation_counters()
        assert after["bank_conflicts"] == before["bank_conflicts"]
        on_tensor_cores = s.dtype in HALVES and any(q * k for q, k in s.lengths)
        products = "warpgroup_products" if s.wgmma else "matrix_products"
        assert (after[products] > before[products]) == on_tensor_cores

    counted = (counted_q, counted_k, counted_k)
    got, truth, peer = (
        [t[:count] for t, count in zip(tensors, counted, strict=True)]
        for tensors in ([kernels.get(t) for t in results], truth, peer)
    )
    for label, ours, exact, theirs in zip(("dq", "dk", "dv"), got, truth, peer, strict=True):
        if exact.numel() == 0:
            continue
        # Two units in the last place of the largest value, of 1 at least: inputs are of that size,
        # and gradients that cancel to nothing keep the rounding of what they are made of.
        floor = 4 * torch.finfo(s.dtype).eps * max(1.0, exact.abs().max().item())
        error = (ours.double() - exact).abs().max().item()
        allowed = 2 * (theirs - exact).abs().max().item() + floor
        assert error <= allowed, f"{label}: error {error:.2e}, allowed {allowed:.2e}"
    if s.key_lengths is not None:
        starts = offsets(keys).tolist()
        for n, length in enumerate(s.key_lengths):
            for t in got[1:]:
                assert not t[starts[n] + length : starts[n + 1]].any(), "keys that do not count"
    for ours, first in zip(got, _bits.setdefault(name, got), strict=True):
        assert torch.equal(ours, first), "other bits than before"


def nothing_asks(queries: int, heads: int, dtype: torch.dtype, sm: int, kernels: Kernels) -> None:
    """Keys that no query or no head sees get gradients of zero."""
    if kernels.emulated:
        kernels.compiled.set_emulated_device(sm=sm)
    q = torch.empty(queries, heads, 64, dtype=dtype)
    k, v = torch.randn(2, 70, 2, 64, generator=generator("nothing asks")).to(dtype)
    grads = [kernels.empty(*t.shape, dtype=dtype) for t in (q, k, v)]
    kernels.compiled.attention_backward(
        kernels.put(q), None, *map(kernels.put, (q, k, v, q)), kernels.put(torch.empty(heads, queries)),
        None, None, None, None, None, None, False, True, -1, -1, 0.125, *grads,
    )  # fmt: skip
    if kernels.emulated:
        kernels.compiled.set_emulated_device(sm=90)
    for grad, given in zip(grads, (q, k, v), strict=True):
        assert torch.equal(kernels.get(grad), torch.zeros_like(given))


def _cases() -> list[Case]:
    bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
    one = ((65, 129),)  # one more of each than fills steps and tiles
    ragged = ((33, 40), (0, 9), (65, 5), (7, 0))
    core = {
        "bf16-64": Setting(bf16, one),
        "f16-64-causal-ragged": Setting(f16, ragged, causal=True, group=3),
        "bf16-128-causal-gqa": Setting(bf16, ((50, 50),), 128, group=3, causal=True),
        "f16-96-window-rotated": Setting(
            f16, ((40, 70),), 96, window=(20, 5), rotation="half", grad_lse=False
        ),
        "bf16-64-lengths-interleaved": Setting(
            bf16, ((30, 50), (9, 140)), kv_heads=2, key_lengths=(37, 0), rotation="interleaved"
        ),
        "f16-128-99KB": Setting(f16, ((40, 150),), 128, causal=True, sm=120),
        "bf16-37": Setting(bf16, ((21, 30),), 37, group=2, rotation="half", turned=9, gap=5),
        "bf16-64-partials": Setting(bf16, ((40, 40),), causal=True, partials=True),
        "f32-40-rotated": Setting(
            f32, ((20, 31), (5, 9)), 40, group=2, causal=True, rotation="half", turned=8
        ),
        "bf16-64-wgmma": Setting(bf16, ((65, 129), (9, 3)), causal=True, group=2, sm=90),
        "f16-128-wgmma": Setting(
            f16, ((75, 150),), 128, window=(90, 40), rotation="half", key_lengths=(140,), sm=90
        ),
        # Rows that no tile ends with, sequences without queries or keys, rows that see nothing.
        "bf16-128-wgmma-ragged": Setting(bf16, ragged, 128, group=7, causal=True, sm=90),
        "bf16-64-wgmma-beside-nan": Setting(
            bf16, ((9, 20), (9, 20)), group=2, beside_nan=True, sm=90
        ),
        # Rows whose lse is below -88: without a mask, weights of keys behind the last are infinite.
        "bf16-64-wgmma-low-scores": Setting(bf16, ((40, 2),), group=2, scale=20.0, sm=90),
        # Tiles full of rows, more of them than a block of threads takes: two add to the same keys.
        "bf16-64-wgmma-shared-keys": Setting(bf16, ((15, 20),), group=64, sm=90),
        "f32-255-window": Setting(f32, ((9, 17),), 255, window=(3, 4), key_lengths=(13,)),
    }
    long = {
        # More than a tile of each side, and rows that see nothing.
        "bf16-64-tiles": Setting(bf16, ((150, 140), (30, 270)), group=2, causal=True),
        "f16-128-tiles": Setting(f16, ((140, 150),), 128, causal=True, rotation="half", gap=8),
        "bf16-windows": Setting(bf16, ((90, 320), (64, 64), (1, 200)), 80, window=(70, 0), gap=8),
        "f16-lengths": Setting(
            f16, ((15, 200), (9, 128)), 96, group=7, causal=True, key_lengths=(150, 128)
        ),
        "bf16-odd": Setting(bf16, ((50, 60),), 33, gap=1, partials=True),
        "f16-interleaved-few": Setting(
            f16, ((60, 60),), rotation="interleaved", turned=11, window=(-1, 3)
        ),
        "f16-40-wgmma": Setting(f16, ((150, 70),), 40, gap=8, grad_lse=False, sm=90),
        "bf16-128-wgmma-tiles": Setting(
            bf16, ((140, 150), (0, 3)), 128, group=2, causal=True, rotation="interleaved", sm=90
        ),
        # Blocks that share rows, and blocks that share keys.
        "bf16-128-wgmma-turns": Setting(
            bf16, ((300, 300),), 128, group=5, causal=True, rotation="half", sm=90
        ),
        "f16-64-wgmma-turns": Setting(f16, ((150, 400),), group=7, kv_heads=2, sm=90),
        "bf16-120-wgmma-many": Setting(bf16, ((9, 30),), 120, group=33, gap=8, sm=90),
        "bf16-64-too-many-heads": Setting(bf16, ((5, 30),), group=65, sm=90),
        "bf16-8": Setting(bf16, ((40, 30),), 8, kv_heads=3),
        "bf16-nothing": Setting(bf16, ((0, 70), (5, 0))),
        "f32-nothing": Setting(f32, ((0, 70), (5, 0))),
        "f32-more": Setting(f32, ((50, 70),), 64, group=2, causal=True),
        "f32-partials": Setting(f32, ((30, 40),), 128, partials=True, rotation="interleaved"),
    }
    for kind, half in (("bf16", bf16), ("f16", f16)):
        for dim in (160, 192, 256):
            long[f"{kind}-{dim}"] = Setting(half, ((40, 70), (9, 5)), dim, causal=True)
        long[f"{kind}-256-99KB"] = Setting(half, ((40, 70),), 256, rotation="half", sm=120)
    for dtype in (bf16, f32):
        for scale in (-0.3, 0.0):
            kind = "f32" if dtype is f32 else "bf16"
            long[f"{kind}-scale{scale}"] = Setting(dtype, ((40, 40),), causal=True, scale=scale)
    nobody = [
        Case(
            f"{'no-heads' if heads == 0 else 'no-queries'}-{sm}-{str(dtype).removeprefix('torch.')}",
            partial(nothing_asks, queries, heads, dtype, sm),
        )
        for queries, heads in ((5, 0), (0, 4))
        for dtype, sm in ((bf16, 80), (bf16, 90), (f32, 80))
    ]
    return nobody + [
        Case(name, partial(run, name, s), is_core)
        for group, is_core in ((core, True), (long, False))
        for name, s in group.items()
    ]


CASES = _cases()
