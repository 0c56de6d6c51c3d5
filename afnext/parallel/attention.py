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
from .plan import Calls, SequencePlan, Shares


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

    @property
    def apart(self) -> bool:
        """Whether this rank's own tokens are computed apart from the others', to cover messages."""
        return self.overlap and self.plan.ulysses > 1

    def shares(self, step: int) -> Shares:
        """What is computed at a ring step."""
        plan, rank = self.plan, self.link.rank
        if self.apart:
            return plan.shares(rank, step, self.mask)
        return Shares(rest=plan.steps(rank // plan.ulysses, self.mask)[step])

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
            # The first piece meets this rank's own keys while others' come; a ring needs all to begin.
            keys_first = i > 0 or how.plan.ring > 1 or not how.apart
            if keys_first:
                kv.send_before(i)
            queries.append(_to_heads(q, blocks, how))
            if not keys_first:
                kv.send_before(i)
        outs, lses, out = _forward(kv, queries, how, q.detach())
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
        dq, dk, dv = _backward(kv, queries, outs, lses, grad, arriving, how, ctx.key_heads)
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
        self.kv, self.how = (k.detach(), v.detach()), how
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
    kv: _Keys, queries: Sequence[tuple[Tensor, Work]], how: _How, q: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Of each piece the results over all keys ``[T of the ring rank, own heads, D]`` with their lse, and this
    rank's tokens' results of all heads; ``q [T, Hq, D]`` are its own queries.

    Its own tokens' results are sent to nobody: of half of the pieces they are made last, behind messages.
    """
    plan, rank = how.plan, how.link.rank
    pieces = how.heads.own(rank % plan.ulysses)
    own = _Own(how)
    partials = [_Partial(x) for x, _ in queries]
    works: list[Work] = []
    home = _Homecoming(how.heads.queries, q, len(q), how, works)
    outs: list[Tensor] = []
    late = range((len(pieces) + 1) // 2 if how.apart else len(pieces), len(pieces))
    first = how.shares(0)

    def attend(number: int, calls: Calls, own_queries: bool, keys: Tensor | None = None) -> None:
        """A piece's, to ``keys``, or to its own tokens'."""
        piece, partial = pieces[number], partials[number]
        for call in calls if piece.queries else ():
            arrived = queries[number][0]
            rows = own.queries(q, piece, call) if own_queries else _queries(arrived, call)
            k, v = own.keys(kv.kv, piece, call) if keys is None else _keys(keys, piece, call)
            partial.add(call, *_attend(rows, k, v, piece, call, how))

    for i in range(len(pieces)):
        attend(i, first.near, True)
    if plan.ring > 1:
        kv.wait(0)
    ring = _Ring(kv.all, how)
    for step in range(plan.ring):
        keys = ring.begin()
        is_last = step == plan.ring - 1
        share = how.shares(step)
        for i, (_, came) in enumerate(queries):
            others = share.rest
            if how.apart and plan.ring == 1 and i == 0:
                came.wait()
                attend(i, share.yours, False)
                others = share.theirs
            if step == 0:
                kv.wait(i)
            if not (is_last and i in late):
                attend(i, share.mine, True, keys)
            if step == 0:
                came.wait()
            attend(i, others, False, keys)
            if is_last:
                outs.append(partials[i].out.to(q.dtype))
                home.send(i, outs[-1])
        if is_last:
            for i in late:
                attend(i, share.mine, True, keys)
        ring.end()
    _All(works).wait()
    out = home.heads(q.shape[1])
    for i in late:
        outs[i][own.rows] = partials[i].out[own.rows].to(q.dtype)
    if late:
        own.finish(out, outs, pieces)
    return outs, [partial.lse for partial in partials], out


class _Own:
    """This rank's tokens among those of its ring rank, and its heads among all."""

    def __init__(self, how: _How) -> None:
        plan, rank = how.plan, how.link.rank
        ulysses_rank = rank % plan.ulysses
        self.first = sum(how.lengths[:ulysses_rank])
        self.rows = slice(self.first, self.first + plan.lengths[rank])
        self.first_key = how.heads.keys.heads[how.heads.keys.offsets[ulysses_rank]]

    def queries(self, x: Tensor, piece: Piece, call: Call) -> Tensor:
        """A piece's heads of ``x [T, Hq, D]``, a call's queries of them."""
        rows = x[call.q_start - self.first : call.q_stop - self.first]
        return rows[:, piece.q_start : piece.q_stop]

    def keys(self, kv: tuple[Tensor, Tensor], piece: Piece, call: Call) -> list[Tensor]:
        """Keys and values that a piece's heads read, of ``[T, Hkv, D]``, a call's."""
        rows = slice(call.k_start - self.first, call.k_stop - self.first)
        heads = slice(self.first_key + piece.k_start, self.first_key + piece.k_stop)
        return [x[rows, heads] for x in kv]

    def finish(self, into: Tensor, found: Sequence[Tensor], pieces: Sequence[Piece]) -> None:
        """Have ``into [T, Hq, D]`` hold its own tokens' and heads' of ``found``, of each piece."""
        for x, piece in zip(found, pieces, strict=True):
            into[:, piece.q_start : piece.q_stop] = x[self.rows].to(into.dtype)

    def of_near(self, near: Tensor, piece: Piece, call: Call) -> tuple[Tensor, Tensor]:
        """As :func:`_keys`, out of ``[H, 2, T, D]`` of its own tokens."""
        shifted = call._replace(k_start=call.k_start - self.first, k_stop=call.k_stop - self.first)
        return _keys(near, piece, shifted)

    def add(self, dk: Tensor, dv: Tensor, near: Tensor) -> None:
        """Add to ``[T, Hkv, D]`` what its own tokens are to one another, of ``[H, 2, T, D]``."""
        heads = slice(self.first_key, self.first_key + near.shape[0])
        for into, found in zip((dk, dv), near.unbind(1), strict=True):
            into[:, heads] += found.transpose(0, 1).to(into.dtype)


def _queries(q: Tensor, call: Call) -> Tensor:
    return q[call.q_start : call.q_stop]


def _keys(kv: Tensor, piece: Piece, call: Call) -> tuple[Tensor, Tensor]:
    """Keys and values of a piece and a call, ``[T, H, D]`` each, out of ``[H, 2, T, D]``."""
    k, v = kv[piece.k_start : piece.k_stop, :, call.k_start : call.k_stop].permute(1, 2, 0, 3)
    return k, v


def _attend(
    q: Tensor, k: Tensor, v: Tensor, piece: Piece, call: Call, how: _How
) -> tuple[Tensor, Tensor]:
    out, lse = OP.no_grad(
        q, k, v, call.cu_q, call.cu_k, None, None, None, None, False,
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
    grad: Tensor,
    grads: Sequence[tuple[Tensor, Work]],
    how: _How,
    key_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq ``[T, Hq, D]``, dk and dv ``[T, Hkv, D]``, these in ``grad_dtype``, all at home; ``grad [T, Hq, D]``
    is of this rank's tokens, ``grads`` of its heads as they come.

    In a ring this rank's own keys are taken in two parts, half of the heads first and half last: the first
    covers the keys that come in, the last the gradients that come home. Without one a key head's gradients go
    home as soon as its last piece is done. Its own tokens cover the first gradients that come in, and those
    that go home last.
    """
    plan, rank = how.plan, how.link.rank
    pieces, own = how.heads.own(rank % plan.ulysses), _Own(how)
    shares = [how.shares(step) for step in range(plan.ring)]
    works: list[Work] = []
    tokens, width = plan.lengths[rank], kv.new_empty(0, kv.shape[3])
    home = _Homecoming(how.heads.queries, width, tokens, how, works)
    rounds, width = [r.blocks for r in how.heads.rounds], width.to(how.grad_dtype)
    key_homes = [_Homecoming(rounds, width, tokens, how, works) for _ in range(2)]
    sums = [torch.zeros_like(q, dtype=torch.float32) for q in queries]

    def add(calls: Calls, number: int, keys: Tensor, into: Tensor, here: bool = False) -> None:
        """A piece's gradients; with ``here`` of this rank's own queries, whose are not waited for."""
        piece = pieces[number]
        if not here:
            grads[number][1].wait()
        for call in calls if piece.queries else ():
            arrived = grads[number][0]
            of_call = own.queries(grad, piece, call) if here else _queries(arrived, call)
            there = own.of_near(into, piece, call) if into is near else _keys(into, piece, call)
            part = queries[number], keys, outs[number], lses[number], of_call
            _attend_backward(*part, piece, call, how, sums[number], there)

    def home_from(number: int) -> None:
        home.send(number, sums[number].to(kv.dtype))

    def keys_home(piece: int) -> None:
        for number, found in enumerate(how.heads.rounds):
            if found.last == piece:
                # Of none where this rank has none.
                there = summed[number : number + 1].to(how.grad_dtype)
                for x, way in zip(there.permute(1, 2, 0, 3), key_homes, strict=True):
                    way.send(number, x)

    count = len(pieces)
    every = range(count)
    early = range((count + 2) // 4)  # own tokens of the other pieces are kept for the end
    first = range((count + 1) // 2 if plan.ring > 1 else 0)
    last = range(len(first), count)
    ring = _Ring(kv, how)
    ring.begin()
    summed = torch.zeros_like(kv, dtype=torch.float32)
    # Apart from the others: those are on their way home when it is finished.
    near = summed.new_zeros(kv.shape[0], 2, tokens, kv.shape[3])
    for i in every:
        if i in early:
            add(shares[0].near, i, kv, near, here=True)
        add(shares[0].mine, i, kv, summed, here=True)
    for i in first:
        add(shares[0].rest, i, kv, summed)
    follows: Work = _All(())
    carried: Tensor | None = None  # gradients of the keys that are here, from where they have been
    for step in range(1, plan.ring):
        ring.end()
        keys = ring.begin()
        here = torch.zeros_like(keys, dtype=torch.float32)
        for i in every:
            add(shares[step].mine + shares[step].rest, i, keys, here)
            if step == plan.ring - 1 and i in first:
                home_from(i)
        if carried is not None:
            follows.wait()
            here += carried
        away = here.to(how.grad_dtype)
        carried = away.new_empty(kv.shape[0], 2, ring.length(step + 1), kv.shape[3])
        follows = how.begun(how.link.shift([carried], [away]))
    for i in last:
        add(shares[0].rest, i, kv, summed)
        home_from(i)
        if plan.ring == 1:
            keys_home(i)
    if carried is not None:
        follows.wait()
        summed += carried
        for i in every:
            keys_home(i)
    for i in every[len(early) :]:
        add(shares[0].near, i, kv, near, here=True)
    _All(works).wait()
    dq = home.heads(grad.shape[1])
    dk, dv = (way.heads(key_heads) for way in key_homes)
    if how.apart:
        own.finish(dq, sums, pieces)
        own.add(dk, dv, near)
    return dq, dk, dv


def _attend_backward(
    q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, grad: Tensor, piece: Piece, call: Call,
    how: _How, dq: Tensor, dkv: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    """Add a call's gradients; ``out`` and ``lse`` are over all keys, so that they add up to the whole's.
    ``grad`` and ``dkv`` are of the call's queries and keys.
    """
    rows = slice(call.q_start, call.q_stop)
    k, v = _keys(kv, piece, call)
    grad_q, grad_k, grad_v = BACKWARD.default(
        grad, None, q[rows], k, v, out[rows], lse[:, rows].contiguous(), call.cu_q, call.cu_k,
        None, None, None, None, False, call.causal, call.left, -1, how.scale, False,
    )  # fmt: skip
    dq[rows] += grad_q
    for into, found in zip(dkv, (grad_k, grad_v), strict=True):
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
