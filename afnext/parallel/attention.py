"""Attention of a sequence that several ranks share: Ulysses within a ring, forward and backward.

Forward, on each rank: keys and values go to the ranks that have their heads, a head at a time, and queries in
pieces behind those that they read (an all-to-all, DeepSpeed Ulysses, arXiv 2309.14509). Then R steps: attend
to the keys that are here while those of the ring's neighbour come in (Ring Attention, arXiv 2310.01889);
partial results merge in float32. A piece of heads that is done goes back while the next is computed. Backward
the keys go round again, under the log-sum-exp over all keys, and their gradients follow one message behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afnext import ops
from afnext.ops.attention import BACKWARD, OP, window_bounds

from .bands import Call, Mask
from .heads import Blocks, HeadPlan, Piece, head_plan
from .link import Done, Link, Work, world_link
from .plan import SequencePlan


@dataclass(frozen=True)
class _How:
    """What does not change between forward and backward."""

    plan: SequencePlan
    link: Link
    heads: HeadPlan
    mask: Mask
    scale: float
    grad_dtype: torch.dtype
    overlap: bool

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each Ulysses rank of this ring rank."""
        first = self.link.rank - self.link.rank % self.plan.ulysses
        return self.plan.lengths[first : first + self.plan.ulysses]

    def begun(self, work: Work) -> Work:
        """Without overlap every message is waited for at once."""
        if not self.overlap:
            work.wait()
        return work


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

    Every rank calls it, with the same plan and options. Causality and windows go by place in the row.

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
    how = _How(
        plan, link, head_plan(q.shape[1], k.shape[1], plan.ulysses, pieces),
        Mask(causal, bounds),
        q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale, grad_dtype, overlap,
    )  # fmt: skip
    out: Tensor = _Attention.apply(q, k, v, how)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, how: _How) -> Tensor:
        kv = _Keys(k, v, how)
        queries = []
        for i, blocks in enumerate(how.heads.queries):
            kv.send_before(i)
            queries.append(_to_heads(q, blocks, how))
        outs, lses, out = _forward(kv, queries, how, q)
        ctx.how, ctx.key_heads = how, k.shape[1]
        ctx.save_for_backward(kv.all, *(x for x, _ in queries), *outs, *lses)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        how: _How = ctx.how
        kv, *rest = ctx.saved_tensors
        n = len(how.heads.pieces)
        queries, outs, lses = rest[:n], rest[n : 2 * n], rest[2 * n :]
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        arriving = [_to_heads(grad, blocks, how) for blocks in how.heads.queries]
        dq, dk, dv = _backward(kv, queries, outs, lses, arriving, how, ctx.key_heads)
        return dq, dk.to(kv.dtype), dv.to(kv.dtype), None


# --- moves between tokens and heads ------------------------------------------------------------------


def _to_heads(
    x: Tensor, blocks: Blocks, how: _How, out: Tensor | None = None
) -> tuple[Tensor, Work]:
    """Send heads of this rank's tokens ``[T, H, D]`` to the ranks that have them; ``[T of the ring rank, own
    heads, D]`` comes in.
    """
    ulysses_rank = how.link.rank % how.plan.ulysses
    count, lengths = blocks.counts[ulysses_rank], how.lengths
    packed = ops.all_to_all_pack(x.detach(), blocks.offsets, blocks.heads)
    if how.plan.ulysses == 1:  # nobody else has any of it
        alone = packed.view(len(x), count, x.shape[2])
        return alone if out is None else out.copy_(alone), Done()
    if out is None:
        out = x.new_empty(sum(lengths), count, x.shape[2])
    work = how.link.all_to_all(
        out.view(-1, x.shape[2]), packed,
        [n * count for n in lengths], [len(x) * n for n in blocks.counts],
    )  # fmt: skip
    return out, how.begun(work)


def _home(x: Tensor, blocks: Blocks, into: Tensor, tokens: int, how: _How) -> Work:
    """Send the heads ``x [T of the ring rank, own heads, D]`` home; into ``[tokens * all heads, D]``."""
    count, lengths = x.shape[1], how.lengths
    if how.plan.ulysses == 1:
        into.copy_(x.reshape(into.shape))
        return Done()
    work = how.link.all_to_all(
        into, x.reshape(-1, x.shape[2]),
        [tokens * n for n in blocks.counts], [n * count for n in lengths],
    )  # fmt: skip
    return how.begun(work)


class _Homecoming:
    """Blocks of heads on their way home, one after another; ``works`` has all that is under way."""

    def __init__(
        self, rounds: Sequence[Blocks], like: Tensor, tokens: int, how: _How, works: list[Work]
    ) -> None:
        self.rounds, self.tokens, self.how, self.works = rounds, tokens, how, works
        rows = [tokens * blocks.offsets[-1] for blocks in rounds]
        self.rows = like.new_empty(sum(rows), like.shape[-1])
        self.parts = self.rows.split(rows)

    def send(self, number: int, x: Tensor) -> None:
        """``[T of the ring rank, own heads, D]`` of a block."""
        part = self.parts[number]
        self.works.append(_home(x, self.rounds[number], part, self.tokens, self.how))

    def heads(self, count: int) -> Tensor:
        """``[T, count, D]``, when all has come."""
        # What came of all blocks lies as one exchange among blocks x ranks would have it.
        offsets, first = [0], 0
        heads: list[int] = []
        for blocks in self.rounds:
            offsets += [first + end for end in blocks.offsets[1:]]
            heads += blocks.heads
            first = offsets[-1]
        return ops.all_to_all_unpack(self.rows, offsets, heads, count)


class _Keys:
    """Keys and values of a rank's heads as they come: ``all [own key heads, 2, T of the ring rank, D]``."""

    def __init__(self, k: Tensor, v: Tensor, how: _How) -> None:
        self.kv, self.how = (k, v), how
        self.count = how.heads.keys.counts[how.link.rank % how.plan.ulysses]
        self.all = k.new_empty(self.count, 2, sum(how.lengths), k.shape[2])
        self.coming: list[tuple[int, Work]] = []

    def send_before(self, piece: int) -> None:
        """Send the heads that a piece is the first to read; in a ring all go round together, so at once."""
        for number, found in enumerate(self.how.heads.rounds):
            if piece != (found.first if self.how.plan.ring == 1 else 0):
                continue
            for x, into in zip(self.kv, self._into(number), strict=True):
                self.coming.append((piece, _to_heads(x, found.blocks, self.how, into)[1]))

    def wait(self, piece: int) -> None:
        """Have what pieces up to this one read."""
        while self.coming and self.coming[0][0] <= piece:
            self.coming.pop(0)[1].wait()

    def _into(self, number: int) -> Sequence[Tensor | None]:
        if number >= self.count:  # a head that this rank has not
            return None, None
        return [x.unsqueeze(1) for x in self.all[number]]


class _All:
    def __init__(self, works: Sequence[Work]) -> None:
        self.works = works

    def wait(self) -> None:
        for work in self.works:
            work.wait()


# --- the ring ----------------------------------------------------------------------------------------


class _Ring:
    """Keys and values going round: those here are used while the next come into the other of two buffers."""

    def __init__(self, kv: Tensor, how: _How) -> None:
        self.how, self.here = how, kv
        self.step = 0
        self.coming: tuple[Tensor, Work] = kv, _All(())
        longest = max(how.plan.ring_lengths)
        self.buffers: list[Tensor] = []
        if how.plan.ring > 1:
            shape = (kv.shape[0], 2, longest, kv.shape[3])
            self.buffers = [kv.new_empty(shape) for _ in range(min(2, how.plan.ring - 1))]

    def begin(self) -> Tensor:
        """Start the exchange that brings the next step's; returns this step's ``[H, 2, T, D]``."""
        if self.step < self.how.plan.ring - 1:
            into = _rows(self.buffers[self.step % 2], self.length(self.step + 1))
            work = self.how.link.shift([into], [self.here])
            self.coming = into, self.how.begun(work)
        return self.here

    def end(self) -> None:
        """The next step's keys are here."""
        self.step += 1
        if self.step < self.how.plan.ring:
            self.coming[1].wait()
            self.here = self.coming[0]

    def length(self, step: int) -> int:
        """Tokens of the ring rank whose keys are here at a step."""
        plan = self.how.plan
        return plan.ring_lengths[(self.how.link.rank // plan.ulysses - step) % plan.ring]


def _rows(buffer: Tensor, count: int) -> Tensor:
    """The beginning of a fixed buffer ``[H, 2, longest, D]`` as a contiguous ``[H, 2, count, D]``."""
    shape = (buffer.shape[0], 2, count, buffer.shape[3])
    return buffer.view(-1)[: math.prod(shape)].view(shape)


def _forward(
    kv: _Keys, queries: Sequence[tuple[Tensor, Work]], how: _How, like: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    pieces = how.heads.own(how.link.rank % how.plan.ulysses)
    steps = how.plan.steps(how.link.rank // how.plan.ulysses, how.mask)
    partials = [_Partial(q) for q, _ in queries]
    works: list[Work] = []
    home = _Homecoming(how.heads.queries, like, like.shape[0], how, works)
    outs: list[Tensor] = []
    if how.plan.ring > 1:
        kv.wait(0)
    ring = _Ring(kv.all, how)
    for step, calls in enumerate(steps):
        keys = ring.begin()
        for i, (piece, (q, came), partial) in enumerate(
            zip(pieces, queries, partials, strict=True)
        ):
            if step == 0:
                kv.wait(i)
                came.wait()
            for call in calls if piece.queries else ():
                partial.add(call, *_attend(q, keys, piece, call, how))
            if step == how.plan.ring - 1:
                outs.append(partial.out.to(like.dtype))
                home.send(i, outs[-1])
        ring.end()
    _All(works).wait()
    return outs, [partial.lse for partial in partials], home.heads(like.shape[1])


def _own(kv: Tensor, piece: Piece, call: Call) -> tuple[Tensor, Tensor]:
    """Keys and values of a piece and a call, ``[T, H, D]`` each, out of ``[H, 2, T, D]``."""
    k, v = kv[piece.k_start : piece.k_stop, :, call.k_start : call.k_stop].permute(1, 2, 0, 3)
    return k, v


def _attend(q: Tensor, kv: Tensor, piece: Piece, call: Call, how: _How) -> tuple[Tensor, Tensor]:
    k, v = _own(kv, piece, call)
    out, lse = OP.no_grad(
        q[call.q_start : call.q_stop], k, v, call.cu_q, call.cu_k, None, None, None, None, False,
        call.causal, call.left, -1, how.scale, True,
    )  # fmt: skip
    return out, lse


class _Partial:
    """Attention of a piece's heads to the keys seen so far, in float32."""

    def __init__(self, q: Tensor) -> None:
        self.out = q.new_zeros(q.shape, dtype=torch.float32)
        self.lse = q.new_full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.float32)
        self.empty = True

    def add(self, call: Call, out: Tensor, lse: Tensor) -> None:
        rows = slice(call.q_start, call.q_stop)
        if len(out) == len(self.out):
            if not self.empty:
                out, lse = ops.merge_attention(self.out, self.lse, out, lse)
            self.out, self.lse = out, lse
        else:
            before = self.out[rows], self.lse[:, rows].contiguous()
            self.out[rows], self.lse[:, rows] = ops.merge_attention(*before, out, lse)
        self.empty = False


def _backward(
    kv: Tensor,
    queries: Sequence[Tensor],
    outs: Sequence[Tensor],
    lses: Sequence[Tensor],
    grads: Sequence[tuple[Tensor, Work]],
    how: _How,
    key_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq ``[T, Hq, D]``, dk and dv ``[T, Hkv, D]``, these in ``grad_dtype``, all at home.

    This rank's own keys are taken in two parts, half of the heads first and half last: the first covers the
    keys that come in, the last the gradients that come home. Without a ring a key head's gradients go home
    as soon as its last piece is done.
    """
    rank, plan = how.link.rank, how.plan
    pieces = how.heads.own(rank % plan.ulysses)
    steps = plan.steps(rank // plan.ulysses, how.mask)
    works: list[Work] = []
    tokens, width = plan.lengths[rank], kv.new_empty(0, kv.shape[3])
    home = _Homecoming(how.heads.queries, width, tokens, how, works)
    rounds, width = [r.blocks for r in how.heads.rounds], width.to(how.grad_dtype)
    key_homes = [_Homecoming(rounds, width, tokens, how, works) for _ in range(2)]
    sums = [torch.zeros_like(q, dtype=torch.float32) for q in queries]

    def add(step: int, which: range, keys: Tensor, into: Tensor) -> None:
        for i in which:
            grads[i][1].wait()
            part = (queries[i], keys, outs[i], lses[i], grads[i][0], pieces[i])
            for call in steps[step] if pieces[i].queries else ():
                _attend_backward(*part, call, how, sums[i], into)
            if step == (0 if i in last else plan.ring - 1):
                home.send(i, sums[i].to(kv.dtype))
            if plan.ring == 1:
                keys_home(i)

    def keys_home(piece: int) -> None:
        for number, found in enumerate(how.heads.rounds):
            if found.last == piece:
                there = own[number : number + 1].to(how.grad_dtype)  # none where this rank has none
                for x, way in zip(there.permute(1, 2, 0, 3), key_homes, strict=True):
                    way.send(number, x)

    count = len(pieces)
    first = range((count + 1) // 2 if plan.ring > 1 else 0)
    last, every = range(len(first), count), range(count)
    ring = _Ring(kv, how)
    ring.begin()
    own = torch.zeros_like(kv, dtype=torch.float32)
    add(0, first, kv, own)
    follows: Work = _All(())
    carried: Tensor | None = None  # gradients of the keys that are here, from where they have been
    for step in range(1, plan.ring):
        ring.end()
        keys = ring.begin()
        here = torch.zeros_like(keys, dtype=torch.float32)
        add(step, every, keys, here)
        if carried is not None:
            follows.wait()
            here += carried
        away = here.to(how.grad_dtype)
        carried = away.new_empty(kv.shape[0], 2, ring.length(step + 1), kv.shape[3])
        follows = how.begun(how.link.shift([carried], [away]))
    add(0, last, kv, own)
    if carried is not None:
        follows.wait()
        own += carried
        for piece in every:
            keys_home(piece)
    _All(works).wait()
    queries_home = home.heads(sum(blocks.offsets[-1] for blocks in how.heads.queries))
    dk, dv = (way.heads(key_heads) for way in key_homes)
    return queries_home, dk, dv


def _attend_backward(
    q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, grad: Tensor, piece: Piece, call: Call,
    how: _How, dq: Tensor, dkv: Tensor,
) -> None:  # fmt: skip
    """Add a call's gradients; ``out`` and ``lse`` are over all keys, so that they add up to the whole's."""
    rows = slice(call.q_start, call.q_stop)
    k, v = _own(kv, piece, call)
    grad_q, grad_k, grad_v = BACKWARD.default(
        grad[rows], None, q[rows], k, v, out[rows], lse[:, rows].contiguous(), call.cu_q, call.cu_k,
        None, None, None, None, False, call.causal, call.left, -1, how.scale, False,
    )  # fmt: skip
    dq[rows] += grad_q
    for into, found in zip(_own(dkv, piece, call), (grad_k, grad_v), strict=True):
        into += found


class SharedAttention:
    """What a decoder's layers call with q, k, v of this rank's tokens, in place of attention in one process.

    Args:
        plan: of the batch.
        times: ``[T]``, positions of this rank's tokens.
        inv_freq: float32 ``[D / 2]``.
        link: ways to the other ranks.
    """

    def __init__(self, plan: SequencePlan, times: Tensor, inv_freq: Tensor, link: Link) -> None:
        self.plan, self.times, self.inv_freq, self.link = plan, times, inv_freq, link

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, self.times, self.plan, inv_freq=self.inv_freq, link=self.link)
