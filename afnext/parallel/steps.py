"""Attention's steps on one rank, forward and backward: what is computed when, behind which messages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from afnext import ops
from afnext.ops.attention import BACKWARD, OP

from .bands import Call
from .heads import Piece
from .link import Work
from .moves import All, Homecoming, How, Keys, Ring
from .plan import Calls


def forward(
    kv: Keys, queries: Sequence[tuple[Tensor, Work]], how: How, q: Tensor
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
    home = Homecoming(how.heads.queries, q, len(q), how, works)
    outs: list[Tensor] = []
    late = range((len(pieces) + 1) // 2 if how.apart else len(pieces), len(pieces))
    first = how.shares(0)

    def add(number: int, calls: Calls, own_queries: bool, keys: Tensor | None = None) -> None:
        """A piece's, to ``keys``, or to its own tokens'."""
        piece, partial = pieces[number], partials[number]
        for call in calls if piece.queries else ():
            arrived = queries[number][0]
            rows = own.queries(q, piece, call) if own_queries else _queries(arrived, call)
            k, v = own.keys(kv.kv, piece, call) if keys is None else _keys(keys, piece, call)
            partial.add(call, *attend(rows, k, v, piece, call, how))

    for i in range(len(pieces)):
        add(i, first.near, True)
    if plan.ring > 1:
        kv.wait(0)
    ring = Ring(kv.all, how)
    for step in range(plan.ring):
        keys = ring.begin()
        is_last = step == plan.ring - 1
        share = how.shares(step)
        for i, (_, came) in enumerate(queries):
            others = share.rest
            if how.apart and plan.ring == 1 and i == 0:
                came.wait()
                add(i, share.yours, False)
                others = share.theirs
            if step == 0:
                kv.wait(i)
            if not (is_last and i in late):
                add(i, share.mine, True, keys)
            if step == 0:
                came.wait()
            add(i, others, False, keys)
            if is_last:
                outs.append(partials[i].out.to(q.dtype))
                home.send(i, outs[-1])
        if is_last:
            for i in late:
                add(i, share.mine, True, keys)
        ring.end()
    All(works).wait()
    out = home.heads(q.shape[1])
    for i in late:
        outs[i][own.rows] = partials[i].out[own.rows].to(q.dtype)
    if late:
        own.finish(out, outs, pieces)
    return outs, [partial.lse for partial in partials], out


class _Own:
    """This rank's tokens among those of its ring rank, and its heads among all."""

    def __init__(self, how: How) -> None:
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


def attend(
    q: Tensor, k: Tensor, v: Tensor, piece: Piece, call: Call, how: How
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


def backward(
    kv: Tensor,
    queries: Sequence[Tensor],
    outs: Sequence[Tensor],
    lses: Sequence[Tensor],
    grad: Tensor,
    grads: Sequence[tuple[Tensor, Work]],
    how: How,
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
    home = Homecoming(how.heads.queries, width, tokens, how, works)
    rounds, width = [r.blocks for r in how.heads.rounds], width.to(how.grad_dtype)
    key_homes = [Homecoming(rounds, width, tokens, how, works) for _ in range(2)]
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
            attend_backward(*part, piece, call, how, sums[number], there)

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
    ring = Ring(kv, how)
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
    follows: Work = All(())
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
    All(works).wait()
    dq = home.heads(grad.shape[1])
    dk, dv = (way.heads(key_heads) for way in key_homes)
    if how.apart:
        own.finish(dq, sums, pieces)
        own.add(dk, dv, near)
    return dq, dk, dv


def attend_backward(
    q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, grad: Tensor, piece: Piece, call: Call,
    how: How, dq: Tensor, dkv: tuple[Tensor, Tensor],
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
