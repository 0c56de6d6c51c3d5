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


class HeadPlan(NamedTuple):
    """Shares of heads.

    Attributes:
        keys: the key heads of each rank; one that several ranks' queries read goes to all of them.
        queries: for each piece the query heads of each rank.
        pieces: ``[piece][rank]``; every rank has as many pieces, some of them empty.
    """

    keys: Blocks
    queries: tuple[Blocks, ...]
    pieces: tuple[tuple[Piece, ...], ...]

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
            read key heads unevenly.

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
        own.append(_even(first, last, group))
    count = max(*map(len, own), min(pieces, max(last.queries for p in own for last in p)), 1)
    for parts in own:
        while len(parts) < count and any(part.queries > 1 for part in parts):
            largest = max(range(len(parts)), key=lambda i: parts[i].queries)
            parts[largest : largest + 1] = _halves(parts[largest])
        parts += [Piece(parts[-1].q_stop, parts[-1].q_stop, parts[-1].k_start, parts[-1].k_start)] * (
            count - len(parts)
        )  # fmt: skip
    by_piece = tuple(zip(*own, strict=True))
    keys = [list(range(parts[0].k_start, max(p.k_stop for p in parts))) for parts in own]
    return HeadPlan(
        _blocks(keys),
        tuple(_blocks([list(range(p.q_start, p.q_stop)) for p in piece]) for piece in by_piece),
        by_piece,
    )


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


def _halves(piece: Piece) -> list[Piece]:
    """Cut between key heads if there are several, else between query heads."""
    keys = piece.k_stop - piece.k_start
    if keys == 1:
        middle = piece.q_start + (piece.queries + 1) // 2
        return [piece._replace(q_stop=middle), piece._replace(q_start=middle)]
    group, key = piece.queries // keys, piece.k_start + (keys + 1) // 2
    middle = piece.q_start + (key - piece.k_start) * group
    return [
        piece._replace(q_stop=middle, k_stop=key),
        piece._replace(q_start=middle, k_start=key),
    ]
