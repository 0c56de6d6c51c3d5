"""What attention over ranks costs, and which (Ulysses, ring) to take: bytes, operations and link speeds.

All figures are of one layer, forward and backward, of causal attention whose work the layout shares out
evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .heads import head_plan

BACKWARD = 2.5
"""Operations of backward beside forward's: five products of matrices for two."""
SCORES = 2
"""Products of matrices forward."""


@dataclass(frozen=True)
class Machine:
    """What computes and what connects.

    Attributes:
        forward, backward: operations a second that a rank's attention reaches.
        memory: bytes a second of its memory.
        within, across: bytes a second that a rank receives from its node's others, from another node's.
        latency: seconds of a message.
        node: ranks of a node.
    """

    forward: float
    backward: float
    memory: float
    within: float
    across: float
    latency: float = 1e-5
    node: int = 8


H100 = Machine(750e12, 600e12, 3.0e12, 360e9, 40e9)
"""Eight H100 SXM a node. Attention and merging as measured there (``benchmarks/results``: 16,384 tokens,
bfloat16). Links by their data sheets, NVLink 4 (450 GB/s each way) and one 400 Gb/s adapter a GPU, at four
fifths: not measured."""


@dataclass(frozen=True)
class Shape:
    """A layer's attention: tokens of the sequence, heads, and bytes of a number (and of a gradient that goes
    round).
    """

    tokens: int
    query_heads: int = 28
    key_heads: int = 4
    head_dim: int = 128
    itemsize: int = 2
    grad_itemsize: int = 4


class Cost(NamedTuple):
    """Of one rank.

    Attributes:
        compute: seconds of attention of the rank with most heads, and of adding up what steps give.
        heads_bytes, ring_bytes: received through exchanges of heads, round the ring.
        communication: seconds that they take.
        exposed: seconds of them that computing does not hide.
    """

    compute: float
    heads_bytes: float
    ring_bytes: float
    communication: float
    exposed: float

    @property
    def seconds(self) -> float:
        """From the beginning to the end."""
        return self.compute + self.exposed

    @property
    def without_overlap(self) -> float:
        """The same where each message is waited for at once."""
        return self.compute + self.communication


def cost(
    shape: Shape, ulysses: int, ring: int, machine: Machine, pieces: int = 6, causal: bool = True
) -> Cost:
    """Model of :func:`afnext.parallel.attention` and its backward.

    Neighbours are within a node as far as it goes; a ring with a hop between nodes goes at that hop's speed.
    Of what is exchanged of heads the first piece of queries with the keys that it reads (in a ring all keys),
    backward the first and the last piece with the gradients of its keys, have nothing to hide behind but a
    rank's own tokens; a ring's step hides behind its computing, as far as that lasts.

    Raises:
        ValueError: more Ulysses ranks than query heads.
    """
    heads = head_plan(shape.query_heads, shape.key_heads, ulysses, pieces)
    most = max(sum(b.counts[r] for b in heads.queries) for r in range(ulysses))
    count = len(heads.pieces)
    ranks, tokens = ulysses * ring, shape.tokens
    pairs = tokens * tokens / (2 if causal else 1) / ring
    forward = 2 * SCORES * pairs * most * shape.head_dim / machine.forward
    backward = BACKWARD * 2 * SCORES * pairs * most * shape.head_dim / machine.backward
    # Partial results in float32: forward read twice and written once at all steps but the first, on three
    # quarters of the rows in the mean; backward the queries' gradients, at every step.
    numbers = tokens / ring * most * shape.head_dim
    forward += (ring - 1) * 0.75 * numbers * 12 / machine.memory
    backward += ring * numbers * (8 + shape.itemsize) / machine.memory

    # Exchanges of heads: what a rank receives from the others, of its own heads and of its own tokens.
    row, local = shape.head_dim * shape.itemsize, tokens / ring
    others = (ulysses - 1) / ulysses
    queries = most * local * others * row  # queries there; results, on the way home, are as many
    keys = 2 * max(heads.keys.counts) * local * others * row
    grads = keys * shape.grad_itemsize / shape.itemsize
    speed = machine.within if ulysses <= machine.node else machine.across
    moves = machine.latency * (ulysses > 1)

    def seconds(size: float, messages: int) -> float:
        return size / speed + messages * moves

    sizes, rounds = [max(blocks.counts) / most for blocks in heads.queries], len(heads.rounds)
    both = seconds(2 * queries, 2 * count)
    # Forward the last results hide behind queries of the rank's own tokens; the rank whose tokens are the
    # first has few, but waits less for the first message.
    at_ends = seconds(queries * sizes[0], 1), seconds(queries * (sizes[0] + sizes[-1]), 2)
    first = sum(found.first == 0 or ring > 1 for found in heads.rounds)
    last = sum(found.last == count - 1 or ring > 1 for found in heads.rounds)
    there, heads_exposed = [], []
    directions = (keys, first, forward), (grads, last, backward)
    for (size, uncovered, compute), ends in zip(directions, at_ends, strict=True):
        there.append(seconds(size, 2 * rounds) + both)
        near = compute / ring / ulysses**2  # own queries and own keys
        alone = seconds(size * uncovered / rounds, 2 * uncovered) + ends
        others = max(0.0, there[-1] - alone - compute * (1 - sizes[-1]))
        heads_exposed.append(max(0.0, alone - near) + others)

    # The ring: a step's keys behind a step's computing; backward their gradients follow on the same wire.
    wire = machine.within if ranks <= machine.node else machine.across
    step = 2 * max(heads.keys.counts) * local * row
    grad_step = step * shape.grad_itemsize / shape.itemsize
    hops = ring - 1
    forward_step = step / wire + machine.latency
    backward_step = (step + grad_step) / wire + 2 * machine.latency
    ring_exposed = hops * (
        max(0.0, forward_step - forward / ring) + max(0.0, backward_step - backward / ring)
    )
    communication = sum(there) + hops * (forward_step + backward_step)
    return Cost(
        forward + backward, 4 * queries + keys + grads, hops * (2 * step + grad_step),
        communication, sum(heads_exposed) + ring_exposed,
    )  # fmt: skip


def gather_seconds(
    size: float, grads: float, shards: int, copies: int = 1, machine: Machine = H100
) -> float:
    """Of a batch, what messages take that make sharded parameters (``size`` bytes in all) whole forward and
    again backward, and add up and share out their gradients (``grads`` bytes), then over copies of the
    shards, nothing else being sent.
    """
    speed = machine.within if shards <= machine.node else machine.across
    everywhere = machine.within if shards * copies <= machine.node else machine.across
    shared_out = (2 * size + grads) * (shards - 1) / shards / speed
    return shared_out + 2 * grads / shards * (copies - 1) / copies / everywhere


def degrees(ranks: int, query_heads: int) -> list[tuple[int, int]]:
    """All (Ulysses, ring) of so many ranks that the heads allow."""
    return [(u, ranks // u) for u in range(1, min(ranks, query_heads) + 1) if ranks % u == 0]


def choose(shape: Shape, ranks: int, machine: Machine = H100) -> tuple[int, int]:
    """The (Ulysses, ring) of least time for ``ranks`` that share a sequence; of equal ones the smaller ring.

    Raises:
        ValueError: ``ranks`` is below one.
    """
    if ranks < 1:
        raise ValueError(f"choose: ranks must be at least 1, got {ranks}")
    found = degrees(ranks, shape.query_heads)
    return min(found, key=lambda pair: (cost(shape, pair[0], pair[1], machine).seconds, pair[1]))
