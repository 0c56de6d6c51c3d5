"""How a packed row of documents is spread over ranks: the plan of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from .bands import Call, Mask, Positions, bands, calls

Layout = Literal["contiguous", "zigzag", "striped"]
CAUSAL = Mask()
Calls = tuple[Call, ...]


class Shares(NamedTuple):
    """What a rank's heads compute at a ring step, by whose tokens these are: its own, or those of the other
    ranks of its Ulysses group.

    Attributes:
        near: of the first step, own queries to own keys: nothing is waited for, and nothing sent of what
            comes of it.
        mine: of the first and the last step, own queries to all other keys.
        yours: of the first step, others' queries to own keys.
        theirs: of the first step, others' queries to others' keys.
        rest: all but near and mine.
    """

    near: Calls = ()
    mine: Calls = ()
    yours: Calls = ()
    theirs: Calls = ()
    rest: Calls = ()


@dataclass(frozen=True)
class SequencePlan:
    """Tokens of packed documents over ``ulysses x ring`` ranks; the same on every rank, made once a batch.

    Rank ``p`` is Ulysses rank ``p % ulysses`` of ring rank ``p // ulysses``: Ulysses ranks are neighbours,
    ring ranks are ``ulysses`` apart. A ring rank's tokens, in ascending order, are cut into ``ulysses``
    parts. Documents begin and end anywhere; sizes need not divide. Which tokens a ring rank has, of R:

    - ``contiguous``: the r-th part of the row. Later ranks have more to do.
    - ``zigzag``: of each document cut into 2 R chunks the r-th and the r-th from the end: the same work on
      every rank at every ring step (yunchang and ring-flash-attention do so for one document a row).
    - ``striped``: each R-th token (Striped Attention, arXiv 2311.09431): the same work to within a diagonal.

    Args:
        ulysses, ring: ranks that share heads, and that share keys.
        layout: as above.
        cu_seqlens: where documents begin and end, from 0 to the number of tokens; a sequence of integers, or
            a tensor on the host.

    Raises:
        ValueError: naming the argument at fault.
    """

    ulysses: int
    ring: int
    layout: Layout
    cu_seqlens: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("ulysses", "ring"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"SequencePlan: {name} must be an integer >= 1, got {value!r}")
        if self.layout not in get_args(Layout):
            raise ValueError(
                f"SequencePlan: layout must be one of {', '.join(get_args(Layout))}, got {self.layout!r}"
            )
        given: Sequence[int] | Tensor = self.cu_seqlens
        ends = tuple(given.tolist() if isinstance(given, Tensor) else map(int, given))
        if len(ends) < 2 or ends[0] != 0 or any(a > b for a, b in pairwise(ends)):
            raise ValueError(
                f"SequencePlan: cu_seqlens must rise from 0 without falling, got {list(ends)[:8]}"
            )
        object.__setattr__(self, "cu_seqlens", ends)

    @property
    def size(self) -> int:
        """Ranks."""
        return self.ulysses * self.ring

    @property
    def total(self) -> int:
        """Tokens of the row."""
        return self.cu_seqlens[-1]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each rank."""
        return tuple(b - a for r in range(self.ring) for a, b in pairwise(self._cuts(r)))

    @cached_property
    def ring_lengths(self) -> tuple[int, ...]:
        """Tokens of each ring rank: of its Ulysses ranks together."""
        return tuple(len(part) for part in self._ring_tokens)

    def tokens(self, rank: int) -> Tensor:
        """int64 ``[lengths[rank]]``, ascending: which tokens of the row a rank has."""
        if not 0 <= rank < self.size:
            raise ValueError(
                f"SequencePlan: rank must be 0 to {self.size - 1} for ulysses {self.ulysses} x ring "
                f"{self.ring}, got {rank}"
            )
        ring_rank, ulysses_rank = divmod(rank, self.ulysses)
        cuts = self._cuts(ring_rank)
        part = self._ring_tokens[ring_rank][cuts[ulysses_rank] : cuts[ulysses_rank + 1]]
        return torch.from_numpy(part)

    def shard(self, x: Tensor, rank: int) -> Tensor:
        """A rank's rows of ``x [total, ...]``."""
        if x.shape[0] != self.total:
            raise ValueError(
                f"SequencePlan: x must have {self.total} rows as cu_seqlens says, got {list(x.shape)}"
            )
        return x.index_select(0, self.tokens(rank).to(x.device))

    def unshard(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all ranks, in the row's order."""
        if tuple(map(len, parts)) != self.lengths:
            raise ValueError(
                f"SequencePlan: parts must have {list(self.lengths)} rows, got {[len(p) for p in parts]}"
            )
        order = torch.cat([self.tokens(rank) for rank in range(self.size)])
        rows = torch.cat(list(parts))
        return torch.empty_like(rows).index_copy(0, order.to(rows.device), rows)

    def steps(self, ring_rank: int, mask: Mask = CAUSAL) -> tuple[Calls, ...]:
        """What a ring rank computes at each step: at step s on the keys of ring rank ``ring_rank - s``."""
        key = ring_rank, mask
        if key not in self._steps:
            self._steps[key] = _steps(self, ring_rank, mask)
        return self._steps[key]

    def shares(self, rank: int, step: int, mask: Mask = CAUSAL) -> Shares:
        """A step's calls by whose tokens they are about; all are ``rest`` of steps between the first and the
        last, and where a ring rank is one rank.
        """
        key = rank, step, mask
        if key not in self._shares:
            self._shares[key] = _shares(self, rank, step, mask)
        return self._shares[key]

    def work(self, mask: Mask = CAUSAL) -> list[list[int]]:
        """(query, key) pairs that each ring rank computes at each ring step: ``[ring][step]``."""
        return [
            [sum(call.pairs for call in step) for step in self.steps(rank, mask)]
            for rank in range(self.ring)
        ]

    # What a plan has worked out for one layer serves the others, and goes with it: it can be a megabyte.
    @cached_property
    def _steps(self) -> dict[tuple[int, Mask], tuple[Calls, ...]]:
        return {}

    @cached_property
    def _shares(self) -> dict[tuple[int, int, Mask], Shares]:
        return {}

    def _cuts(self, ring_rank: int) -> list[int]:
        """Where the parts of the Ulysses ranks begin and end within their ring rank's tokens."""
        count = self.ring_lengths[ring_rank]
        return [count * u // self.ulysses for u in range(self.ulysses + 1)]

    @cached_property
    def _ring_tokens(self) -> tuple[Positions, ...]:
        owner = self._ring_owner()
        return tuple(np.flatnonzero(owner == r) for r in range(self.ring))

    def _ring_owner(self) -> Positions:
        """The ring rank of each token."""
        row, ring = np.arange(self.total), self.ring
        if self.layout == "striped":
            return row % ring
        if self.layout == "contiguous":
            return np.searchsorted(
                [self.total * (r + 1) // ring for r in range(ring)], row, "right"
            )
        starts = np.asarray(self.cu_seqlens)
        lengths = np.diff(starts)
        document = np.repeat(np.arange(len(lengths)), lengths)
        # Chunk c of L tokens begins at (L c + phase) // 2R. Phases differ, or the odd tokens of many short
        # documents would all go to one rank.
        begin = starts[document]
        place, length, phase = row - begin, lengths[document], begin % (2 * ring)
        chunk = (2 * ring * (place + 1) - phase - 1) // np.maximum(length, 1)
        return np.minimum(chunk, 2 * ring - 1 - chunk)


Rows = Sequence[tuple[int, int]]


def _steps(plan: SequencePlan, ring_rank: int, mask: Mask) -> tuple[Calls, ...]:
    every: Rows = ((0, plan.total),)
    return tuple(_calls(plan, ring_rank, step, mask, every, every) for step in range(plan.ring))


def _shares(plan: SequencePlan, rank: int, step: int, mask: Mask) -> Shares:
    ring_rank, ulysses_rank = divmod(rank, plan.ulysses)
    if plan.ulysses == 1 or 0 < step < plan.ring - 1:
        return Shares(rest=plan.steps(ring_rank, mask)[step])
    cuts = plan._cuts(ring_rank)
    first, stop = cuts[ulysses_rank : ulysses_rank + 2]
    own: Rows = ((first, stop),)
    others: Rows = ((0, first), (stop, cuts[-1]))
    every: Rows = ((0, plan.total),)

    def of(queries: Rows, keys: Rows) -> Calls:
        return _calls(plan, ring_rank, step, mask, queries, keys)

    if step > 0:
        return Shares(mine=of(own, every), rest=of(others, every))
    return Shares(
        of(own, own), of(own, others), of(others, own), of(others, others), of(others, every)
    )


def _calls(
    plan: SequencePlan, ring_rank: int, step: int, mask: Mask, queries: Rows, keys: Rows
) -> Calls:
    """What some rows of a ring rank's queries compute at a step on some rows of the keys there."""
    here = plan._ring_tokens[ring_rank]
    there = plan._ring_tokens[(ring_rank - step) % plan.ring]
    found = []
    for q_first, q_stop in queries:
        q_ends = q_first + np.searchsorted(here[q_first:q_stop], plan.cu_seqlens)
        for k_first, k_stop in keys:
            k_ends = k_first + np.searchsorted(there[k_first:k_stop], plan.cu_seqlens)
            for (q0, q1), (k0, k1) in zip(pairwise(q_ends), pairwise(k_ends), strict=True):
                for band in bands(here[q0:q1], there[k0:k1], mask):
                    found.append(
                        band._replace(
                            q_start=band.q_start + int(q0), q_stop=band.q_stop + int(q0),
                            k_start=band.k_start + int(k0), k_stop=band.k_stop + int(k0),
                        )
                    )  # fmt: skip
    return calls(found)
