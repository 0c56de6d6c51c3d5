"""Attention of a sequence that several ranks share: Ulysses within a ring, forward and backward.

Forward, on each rank: keys and values go to the ranks that have their heads, a head at a time, and queries in
pieces behind those that they read (an all-to-all, DeepSpeed Ulysses, arXiv 2309.14509). Then R steps: attend
to the keys that are here while those of the ring's neighbour come in (Ring Attention, arXiv 2310.01889);
partial results merge in float32. A piece of heads that is done goes back while the next is computed. Backward
the keys go round again, under the log-sum-exp over all keys, and their gradients follow one message behind.

What the first and the last message would leave uncovered, a rank spends on its own tokens: their queries and
keys are here before anything is sent, and what comes of them stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from afnext import ops
from afnext.ops.attention import window_bounds

from .bands import Mask
from .heads import head_plan
from .link import Link, world_link
from .moves import How, Keys, to_heads
from .plan import SequencePlan
from .steps import backward, forward


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    times: Tensor | None,
    plan: SequencePlan,
    *,
    inv_freq: Tensor | None = None,
    interleaved: bool = False,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    softmax_scale: float | None = None,
    link: Link | None = None,
    grad_dtype: torch.dtype = torch.float32,
    pieces: int = 6,
    overlap: bool = True,
) -> Tensor:
    """Attention over the whole of ``plan``'s row, of which each rank holds its own tokens. Differentiable in
    q, k, v; results and gradients are those of :func:`afnext.ops.attention` in one process.

    Every rank calls it, with the same plan and options. Causality and windows go by place in the row. On
    CUDA the host waits for no message; but each call makes its buffers and uploads its tables of rows anew,
    so that a graph cannot capture it.

    Args:
        q: float32 or bfloat16 ``[T, Hq, D]``, T = ``plan.lengths[rank]``; ``plan.ulysses`` <= Hq.
        k, v: ``[T, Hkv, D]``; Hkv divides Hq. With fewer key heads than Ulysses ranks they are sent to
            several, whose gradients are added up.
        times: int or float32 ``[T]``, of this rank's tokens (positions or seconds): q and k are turned by
            them before anything is sent. None turns nothing.
        plan: of the batch.
        inv_freq: float32 ``[R / 2]``, radians per unit of time; goes with ``times``.
        interleaved: as for :func:`afnext.ops.rotate`.
        causal, window, softmax_scale: as for :func:`afnext.ops.attention`, within each document.
        link: ways to the other ranks; by default torch's default process group.
        grad_dtype: in which gradients of keys and values go round and are sent home, float32 or bfloat16.
        pieces: in how many the query heads of a rank are exchanged; attention begins with the first, which is
            one of the smallest.
        overlap: False waits for each message before computing, for measurements.

    Returns:
        ``[T, Hq, D]`` of q's dtype.

    Raises:
        ValueError: naming the argument, and the rank, that does not fit.
        AfnextError: a message did not come; naming the ranks.
    """
    if link is None:
        link = world_link(plan.ulysses, plan.ring)
    if (link.ulysses, link.ring) != (plan.ulysses, plan.ring):
        raise ValueError(
            f"attention: plan has ulysses {plan.ulysses} x ring {plan.ring} ranks, the link has "
            f"{link.ulysses} x {link.ring} (seen by rank {link.rank})"
        )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 3 or x.shape[0] != plan.lengths[link.rank]:
            raise ValueError(
                f"attention: {name} must be [{plan.lengths[link.rank]}, heads, dim], the tokens of "
                f"rank {link.rank}, got {list(x.shape)}"
            )
    if v.shape != k.shape:
        raise ValueError(f"attention: v must be {list(k.shape)} like k, got {list(v.shape)}")
    if grad_dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"attention: grad_dtype must be float32 or bfloat16, got {grad_dtype}")
    if (times is None) != (inv_freq is None):
        raise ValueError("attention: times and inv_freq go together")
    if times is not None:
        q = ops.rotate(q, times, inv_freq, interleaved=interleaved)
        k = ops.rotate(k, times, inv_freq, interleaved=interleaved)
    bounds = (-1, -1) if window is None else window_bounds("attention", window)
    how = How(
        plan, link, head_plan(q.shape[1], k.shape[1], plan.ulysses, pieces),
        Mask(causal, bounds),
        q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale, grad_dtype, overlap,
    )  # fmt: skip
    out: Tensor = _Attention.apply(q, k, v, how)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        kv = Keys(k, v, how)
        queries = []
        for i, blocks in enumerate(how.heads.queries):
            # The first piece meets this rank's own keys while others' come; a ring needs all to begin.
            keys_first = i > 0 or how.plan.ring > 1 or not how.apart
            if keys_first:
                kv.send_before(i)
            queries.append(to_heads(q, blocks, how))
            if not keys_first:
                kv.send_before(i)
        outs, lses, out = forward(kv, queries, how, q.detach())
        ctx.how, ctx.key_heads = how, k.shape[1]
        ctx.save_for_backward(kv.all, *(x for x, _ in queries), *outs, *lses)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        how: How = ctx.how
        kv, *rest = ctx.saved_tensors
        n = len(how.heads.pieces)
        queries, outs, lses = rest[:n], rest[n : 2 * n], rest[2 * n :]
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        arriving = [to_heads(grad, blocks, how) for blocks in how.heads.queries]
        dq, dk, dv = backward(kv, queries, outs, lses, grad, arriving, how, ctx.key_heads)
        return dq, dk.to(kv.dtype), dv.to(kv.dtype), None


class SharedAttention:
    """What a decoder's layers call with q, k, v of this rank's tokens, in place of attention in one process.

    Args:
        plan: of the batch.
        times: ``[T]``, positions of this rank's tokens.
        inv_freq: float32 ``[D / 2]``.
        link: ways to the other ranks.
        grad_dtype: of :func:`attention`.
    """

    def __init__(
        self, plan: SequencePlan, times: Tensor, inv_freq: Tensor, link: Link,
        grad_dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.plan, self.times, self.link = plan, times, link
        self.inv_freq, self.grad_dtype = inv_freq, grad_dtype

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(
            q, k, v, self.times, self.plan, inv_freq=self.inv_freq, link=self.link,
            grad_dtype=self.grad_dtype,
        )  # fmt: skip
