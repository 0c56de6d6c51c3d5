"""Attention as torch states it: one dense masked softmax per sequence, in any dtype.

Written against the contract alone, without our kernels or reference, so that both can be held to it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from afnext import ops


@dataclass
class Case:
    """One call of attention: inputs in the dtype under test, and what masks and turns them."""

    q: Tensor
    k: Tensor
    v: Tensor
    lengths_q: list[int]
    lengths_k: list[int]
    key_lengths: list[int] | None = None
    causal: bool = False
    window: tuple[int, int] | None = None
    times_q: Tensor | None = None
    times_k: Tensor | None = None
    inv_freq: Tensor | None = None
    interleaved: bool = False


def make_case(
    lengths_q: list[int],
    lengths_k: list[int] | None = None,
    *,
    kv_heads: int = 2,
    group: int = 1,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    turned: bool = False,
    **options: object,
) -> Case:
    """Random inputs; ``turned`` adds a rotation of half the channels by times up to 1e6."""
    lengths_k = lengths_q if lengths_k is None else lengths_k
    tq, tk = sum(lengths_q), sum(lengths_k)
    case = Case(
        torch.randn(tq, kv_heads * group, dim).to(dtype),
        torch.randn(tk, kv_heads, dim).to(dtype),
        torch.randn(tk, kv_heads, dim).to(dtype),
        lengths_q,
        lengths_k,
        **options,  # type: ignore[arg-type]
    )
    if turned:
        case.times_q, case.times_k = torch.rand(tq) * 1e6, torch.rand(tk) * 1e6
        case.inv_freq = 10.0 ** -torch.linspace(0, 4, max(dim // 4, 1))[: dim // 2]
    return case


def offsets(lengths: list[int]) -> Tensor:
    """``cu_seqlens`` of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def call(attention: Callable[..., tuple[Tensor, Tensor]], case: Case, **options: object) -> tuple:
    """``ops.attention`` on a case."""
    rotation = None
    if case.inv_freq is not None:
        rotation = ops.Rotation(case.times_q, case.times_k, case.inv_freq, case.interleaved)
    lengths = case.key_lengths
    return attention(
        case.q, case.k, case.v,
        cu_seqlens_q=offsets(case.lengths_q), cu_seqlens_k=offsets(case.lengths_k),
        key_lengths=None if lengths is None else torch.tensor(lengths, dtype=torch.int32),
        causal=case.causal, window=case.window, rotation=rotation, **options,
    )  # fmt: skip


def turn(x: Tensor, times: Tensor, inv_freq: Tensor, interleaved: bool) -> Tensor:
    """Pairs of ``x [T, H, D]`` as complex numbers, times exp(i phase), phases in float64."""
    half = len(inv_freq)
    phase = times.double()[:, None] * inv_freq.double()
    wide = x.double()
    pairs = wide[..., : 2 * half].unflatten(-1, (half, 2) if interleaved else (2, half))
    axis = -1 if interleaved else -2
    a, b = pairs.unbind(axis)
    cos, sin = phase.cos()[:, None], phase.sin()[:, None]
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=axis).flatten(-2)
    return torch.cat((turned, wide[..., 2 * half :]), dim=-1).to(x.dtype)


def oracle(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(out, lse) in ``dtype`` arithmetic: float64 for the truth, the inputs' for torch's own error."""
    q, k, v = (t.to(dtype) for t in (case.q, case.k, case.v))
    if case.inv_freq is not None:
        assert case.times_q is not None
        assert case.times_k is not None
        q = turn(q, case.times_q, case.inv_freq, case.interleaved)
        k = turn(k, case.times_k, case.inv_freq, case.interleaved)
    group = q.shape[1] // k.shape[1]
    outs, lses, at_q, at_k = [], [], 0, 0
    for n, (nq, nk) in enumerate(zip(case.lengths_q, case.lengths_k, strict=True)):
        keys = nk if case.key_lengths is None else case.key_lengths[n]
        qn = q[at_q : at_q + nq].transpose(0, 1)
        kn, vn = (
            t[at_k : at_k + keys].repeat_interleave(group, dim=1).transpose(0, 1) for t in (k, v)
        )
        at_q, at_k = at_q + nq, at_k + nk
        scores = qn @ kn.transpose(1, 2) * q.shape[2] ** -0.5
        here, key = torch.arange(nq)[:, None] + keys - nq, torch.arange(keys)
        left, right = case.window or (-1, -1)
        hidden = (key > here) & case.causal
        hidden |= (key < here - left) & (left >= 0)
        hidden |= (key > here + right) & (right >= 0)
        blind = hidden.all(dim=1)  # also where there are no keys
        scores = scores.masked_fill(hidden & ~blind[:, None], -math.inf)
        weights = torch.softmax(scores, dim=-1).masked_fill(blind[:, None], 0.0)
        outs.append((weights @ vn).transpose(0, 1))
        lses.append(torch.logsumexp(scores, dim=-1).masked_fill(blind, -math.inf))
    return torch.cat(outs), torch.cat(lses, dim=1)


def with_gradients(
    results: Callable[[Case], tuple[Tensor, Tensor]],
    case: Case,
    grad_out: Tensor,
    grad_lse: Tensor,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """out, lse and the gradients of q, k, v, all as float64, of ``results`` run in ``dtype``."""
    inputs = [t.detach().to(dtype).requires_grad_() for t in (case.q, case.k, case.v)]
    run = Case(**{**vars(case), "q": inputs[0], "k": inputs[1], "v": inputs[2]})
    out, lse = results(run)
    values = [out, lse]
    grads = (grad_out.to(out.dtype), grad_lse.to(lse.dtype))
    values += (
        torch.autograd.grad((out, lse), inputs, grads)
        if out.requires_grad
        else [torch.zeros_like(t) for t in inputs]
    )
    names = ("out", "lse", "dq", "dk", "dv")
    return {name: t.detach().double() for name, t in zip(names, values, strict=True)}


def assert_gold(
    ours: dict[str, Tensor], torchs: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """The gold standard of FlashAttention's tests: at most twice torch's own error, plus rounding.

    The floor is 2 units in the last place of the largest value; of 1 at least, since inputs are of
    that size and gradients that cancel to nothing keep the rounding of what they are made of.
    lse is float32 for every dtype.
    """
    for name, expected in truth.items():
        eps = torch.finfo(torch.float32 if name == "lse" else dtype).eps
        hidden = expected == -math.inf
        assert torch.equal(ours[name] == -math.inf, hidden), f"{name}: rows that see no key"
        want, got, peer = (t.masked_fill(hidden, 0.0) for t in (expected, ours[name], torchs[name]))
        floor = 4 * eps * max(1.0, want.abs().max().item() if want.numel() else 0.0)
        error = (got - want).abs().max().item() if want.numel() else 0.0
        allowed = 2 * (peer - want).abs().max().item() + floor if want.numel() else 0.0
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
