"""What goes between ranks: heads of queries, keys and gradients to those that have them, results home, keys
round the ring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afnext import ops

from .bands import Mask
from .heads import Blocks, HeadPlan
from .link import Done, Link, Work
from .plan import SequencePlan, Shares


@dataclass(frozen=True)
class How:
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


def to_heads(x: Tensor, blocks: Blocks, how: How, out: Tensor | None = None) -> tuple[Tensor, Work]:
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


def _home(x: Tensor, blocks: Blocks, into: Tensor, tokens: int, how: How) -> Work:
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


class Homecoming:
    """Blocks of heads on their way home, one after another; ``works`` has all that is under way."""

    def __init__(
        self, rounds: Sequence[Blocks], like: Tensor, tokens: int, how: How, works: list[Work]
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


class Keys:
    """Keys and values of a rank's heads as they come: ``all [own key heads, 2, T of the ring rank, D]``."""

    def __init__(self, k: Tensor, v: Tensor, how: How) -> None:
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
                self.coming.append((piece, to_heads(x, found.blocks, self.how, into)[1]))

    def wait(self, piece: int) -> None:
        """Have what pieces up to this one read."""
        while self.coming and self.coming[0][0] <= piece:
            self.coming.pop(0)[1].wait()

    def _into(self, number: int) -> Sequence[Tensor | None]:
        if number >= self.count:  # a head that this rank has not
            return None, None
        return [x.unsqueeze(1) for x in self.all[number]]


class All:
    def __init__(self, works: Sequence[Work]) -> None:
        self.works = works

    def wait(self) -> None:
        for work in self.works:
            work.wait()


class Ring:
    """Keys and values going round: those here are used while the next come into the other of two buffers."""

    def __init__(self, kv: Tensor, how: How) -> None:
        self.how, self.here = how, kv
        self.step = 0
        self.coming: tuple[Tensor, Work] = kv, All(())
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
