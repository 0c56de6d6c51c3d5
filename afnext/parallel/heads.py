"""Which heads each Ulysses rank has, and in which pieces they arrive."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple


class Piece(NamedTuple):
    """Query heads ``q_start`` to ``q_stop`` that read key heads ``k_start`` to ``k_stop``, each of these as
    many of them, as the kernel wants it.
    """

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int

    @property
    def queries(self) -> int:
        """Query heads."""
        return self.q_stop - self.q_start


class Blocks(NamedTuple):
    """Heads by the rank that has them, as :func:`afnext.ops.all_to_all_pack` is told."""

    offsets: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Heads of each rank."""
        return tuple(b - a for a, b in pairwise(self.offsets))


class Round(NamedTuple):
    """One key head of each rank that has so many: sent before piece ``first``, the first of any rank that
    reads it; read by none after piece ``last``.
    """

    blocks: Blocks
    first: int
    last: int


class HeadPlan(NamedTuple):
    """Shares of heads.

    Attributes:
        keys: the key heads of each rank; one that several ranks' queries read goes to all of them.
        queries: for each piece the query heads of each rank.
        pieces: ``[piece][rank]``; every rank has as many pieces, some of them empty.
        rounds: in which the key heads of each rank come, one at a time.
    """

    keys: Blocks
    queries: tuple[Blocks, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    rounds: tuple[Round, ...]

    def own(self, rank: int) -> list[Piece]:
        """A rank's pieces, their key heads counted from the first that it has."""
        first = self.keys.heads[self.keys.offsets[rank]] if self.keys.counts[rank] else 0
        return [
            p[rank]._replace(k_start=p[rank].k_start - first, k_stop=p[rank].k_stop - first)
            for p in self.pieces
        ]


@lru_cache
def head_plan(query_heads: int, key_heads: int, ranks: int, pieces: int = 1) -> HeadPlan:
    """Share heads out as evenly as can be: 28 query heads over 8 ranks are 3 or 4 each.

    Args:
        query_heads, key_heads: of the model; key heads divide query heads.
        ranks: Ulysses ranks, at most as many as there are query heads.
        pieces: in how many pieces a rank's query heads arrive, where it has as many; more where its heads
            read key heads unevenly. The first and the last, which nothing hides, are the smallest.

    Raises:
        ValueError: there are more ranks than query heads, or key heads do not divide them.
    """
    if key_heads < 1 or query_heads % key_heads:
        raise ValueError(f"attention: k's {key_heads} heads must divide q's {query_heads}")
    if ranks > query_heads:
        raise ValueError(
            f"attention: plan.ulysses is {ranks}, more ranks than q's {query_heads} heads"
        )
    group = query_heads // key_heads
    own: list[list[Piece]] = []
    for rank in range(ranks):
        first, last = query_heads * rank // ranks, query_heads * (rank + 1) // ranks
        own.append(_tapered(first, last, group, pieces))
    count = max(map(len, own))
    for parts in own:
        none = Piece(parts[-1].q_stop, parts[-1].q_stop, parts[-1].k_start, parts[-1].k_start)
        parts += [none] * (count - len(parts))
    by_piece = tuple(zip(*own, strict=True))
    keys = [list(range(parts[0].k_start, max(p.k_stop for p in parts))) for parts in own]
    return HeadPlan(
        _blocks(keys),
        tuple(_blocks([list(range(p.q_start, p.q_stop)) for p in piece]) for piece in by_piece),
        by_piece,
        tuple(_round(i, keys, own) for i in range(max(map(len, keys)))),
    )


def _round(number: int, keys: list[list[int]], own: list[list[Piece]]) -> Round:
    """Of the key heads with this number on their ranks."""
    readers = [
        i
        for held, parts in zip(keys, own, strict=True) if len(held) > number
        for i, part in enumerate(parts) if part.k_start <= held[number] < part.k_stop
    ]  # fmt: skip
    return Round(_blocks([held[number : number + 1] for held in keys]), min(readers), max(readers))


def _blocks(heads: list[list[int]]) -> Blocks:
    offsets = tuple(accumulate(map(len, heads), initial=0))
    return Blocks(offsets, tuple(h for part in heads for h in part))


def _even(first: int, last: int, group: int) -> list[Piece]:
    """Query heads ``first`` to ``last`` as pieces whose key heads have equally many of them: those of a key
    head whose queries are not all here are a piece of their own.
    """
    found, at = [], first
    while at < last:
        key = at // group
        end = min(last, (key + 1) * group)
        if at % group == 0 and end - at == group:
            end = last // group * group
        found.append(Piece(at, end, key, (end - 1) // group + 1))
        at = end
    return found


def _tapered(first: int, last: int, group: int, count: int) -> list[Piece]:
    """Query heads ``first`` to ``last`` in about ``count`` pieces: those at either end have half as many as
    their neighbours, and those as theirs.
    """
    weights = [2 ** min(i, count - 1 - i, 2) for i in range(count)]
    total = sum(weights)
    cuts = {first + int((last - first) * w / total + 0.5) for w in accumulate(weights)}
    ends = sorted(cuts - {first} | {last})
    return [part for a, b in pairwise([first, *ends]) for part in _even(a, b, group)]
