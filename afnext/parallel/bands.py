"""Which keys of a block each query sees, as calls of the attention kernel.

A rank has some tokens of each document in ascending order, its ring neighbour others. Of the neighbour's keys
a query sees a range; from one query to the next either end of that range stays or moves by one, but for a few
places. Between those places the range is a band as the kernel knows it, aligned at the bottom right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Positions = NDArray[np.int64]


class Mask(NamedTuple):
    """What a query may see within its document: ``causal``, no later key; ``window``, so many keys before and
    after its own (-1: all).
    """

    causal: bool = True
    window: tuple[int, int] = (-1, -1)


class Band(NamedTuple):
    """Queries and keys that one sequence of a call covers, and the kernel's mask: see ``Call``."""

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int
    causal: bool
    left: int


class Call(NamedTuple):
    """One call of the kernel, on the queries from ``q_start`` to ``q_stop`` and such keys.

    ``cu_q`` and ``cu_k`` (int32, on the host) begin and end its sequences; queries that see nothing here are
    sequences without keys. ``pairs``: how many (query, key) it computes, its work.
    """

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int
    cu_q: Tensor
    cu_k: Tensor
    causal: bool
    left: int
    pairs: int


def visible_ranges(q: Positions, k: Positions, mask: Mask) -> tuple[Positions, Positions]:
    """For each query the first key that it sees and the one behind the last, as indices into ``k``."""
    left, right = mask.window
    if mask.causal:
        right = 0 if right < 0 else min(right, 0)
    first = np.searchsorted(k, q - left, "left") if left >= 0 else np.zeros(len(q), np.int64)
    stop = np.searchsorted(k, q + right, "right") if right >= 0 else np.full(len(q), len(k))
    return first.astype(np.int64), np.maximum(stop, first).astype(np.int64)


def bands(q: Positions, k: Positions, mask: Mask) -> Iterator[Band]:
    """The bands of one document: ``q`` and ``k`` are the ascending positions of its tokens here and there."""
    if not len(q) or not len(k):
        return
    first, stop = visible_ranges(q, k, mask)
    d_first, d_stop = np.diff(first), np.diff(stop)
    # A step is one of four kinds, or it ends a band: both ends of the range stay or move by one.
    kind = np.where((d_first | d_stop) >> 1, -1, 2 * d_stop + d_first)
    seeing = stop > first
    kind[~(seeing[1:] & seeing[:-1])] = -1
    edges = [0, *(np.flatnonzero(np.diff(kind)) + 1).tolist(), len(kind)]
    begin = 0  # the first query that no band has yet
    for a, b in pairwise(edges):
        if b <= a:
            continue
        if kind[a] < 0:  # steps a to b - 1 lead from query a to query b: each ends a band
            for i in range(begin, b):
                yield from _band(first, stop, i, i + 1, seeing)
            begin = max(begin, b)
        else:
            yield from _band(first, stop, begin, b + 1, seeing)
            begin = b + 1
    if begin < len(q):
        yield from _band(first, stop, begin, len(q), seeing)


def _band(
    first: Positions, stop: Positions, begin: int, end: int, seeing: NDArray[np.bool_]
) -> Iterator[Band]:
    if begin >= end or not seeing[begin]:
        return
    last = end - 1
    k_start, k_stop = int(first[begin]), int(stop[last])
    causal = bool(stop[last] > stop[begin])
    # The last query meets the last key; how far before it does the last query's range begin?
    left = k_stop - 1 - int(first[last]) if first[last] > first[begin] else -1
    yield Band(begin, end, k_start, k_stop, causal, left)


def calls(found: Sequence[Band]) -> tuple[Call, ...]:
    """Put bands together that one call can compute: the same mask, one behind the other on both sides."""
    open_calls: dict[tuple[bool, int], list[list[Band]]] = {}
    for band in sorted(found):
        groups = open_calls.setdefault((band.causal, band.left), [])
        for group in groups:
            if band.q_start >= group[-1].q_stop and band.k_start >= group[-1].k_stop:
                group.append(band)
                break
        else:
            groups.append([band])
    return tuple(_call(group) for groups in open_calls.values() for group in groups)


def _call(group: Sequence[Band]) -> Call:
    q0, k0 = group[0].q_start, group[0].k_start
    ends = [(0, 0)]
    for band in group:
        for end in (
            (band.q_start - q0, ends[-1][1]),  # queries that see nothing
            (band.q_start - q0, band.k_start - k0),  # keys that nobody sees
            (band.q_stop - q0, band.k_stop - k0),
        ):
            if end != ends[-1]:
                ends.append(end)
    q_ends, k_ends = zip(*ends, strict=True)
    return Call(
        q0, group[-1].q_stop, k0, group[-1].k_stop,
        torch.tensor(q_ends, dtype=torch.int32), torch.tensor(k_ends, dtype=torch.int32),
        group[0].causal, group[0].left, sum(map(_pairs, group)),
    )  # fmt: skip


def _pairs(band: Band) -> int:
    """(query, key) pairs within a band."""
    queries, keys = band.q_stop - band.q_start, band.k_stop - band.k_start
    total = queries * keys
    if band.causal:
        total -= queries * (queries - 1) // 2
    if band.left >= 0:  # the range's first key moves by one a query
        total -= queries * (queries - 1) // 2
    return total
