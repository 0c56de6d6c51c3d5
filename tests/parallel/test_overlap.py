"""While a block is computed the next is on its way: what is left to wait for, on links made slow.

Computing is a sleep here, as long as the block's work wants it, so that a busy machine changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from afnext.parallel import SequencePlan, attention, local_links, run_local
from afnext.parallel.delay import Delayed, paced

pytestmark = pytest.mark.slow

TOKENS, HEADS, DIM = 512, 8, 32
SECONDS = (
    1.6  # of one rank alone, forward and backward alike: a busy machine wakes sleepers 10 ms late
)
SECONDS_A_PAIR = SECONDS / (TOKENS * TOKENS / 2 * HEADS)


@pytest.fixture
def sleeping() -> Iterator[None]:
    with paced(SECONDS_A_PAIR, SECONDS_A_PAIR):
        yield


def exposed(
    ulysses: int, ring: int, rates: tuple[float, float], overlap: bool, pieces: int
) -> float:
    """Seconds that the rank that waits longest waits, forward and backward."""
    plan = SequencePlan(ulysses, ring, "zigzag", (0, TOKENS))
    links = [Delayed(link, rates) for link in local_links(ulysses, ring)]

    def of_rank(link: Any) -> None:
        tokens = plan.lengths[link.rank]
        q, k, v = (torch.randn(tokens, HEADS, DIM, requires_grad=True) for _ in range(3))
        out = attention(q, k, v, None, plan, link=link, overlap=overlap, pieces=pieces)
        out.sum().backward()

    run_local(links, of_rank)
    return max(link.exposed for link in links)


@pytest.mark.usefixtures("sleeping")
@pytest.mark.parametrize("ring", [2, 4])
def test_a_ring_hides_behind_what_it_feeds(ring: int) -> None:
    """A step's messages take about half as long as its work: at most a tenth of them is waited for."""
    step = 2 * TOKENS / ring * HEADS * DIM * 4  # bytes of keys and values
    compute = SECONDS / ring / ring  # seconds of a step on a rank
    rates = (1e12, 2 * step / (0.5 * compute))  # keys, and gradients as large, in half of it
    hidden = exposed(1, ring, rates, overlap=True, pieces=2)
    shown = exposed(1, ring, rates, overlap=False, pieces=2)
    assert shown > 0.5 * (ring - 1) * 0.75 * compute  # what is measured is there
    assert hidden <= 0.1 * shown


@pytest.mark.usefixtures("sleeping")
def test_heads_arrive_while_others_are_computed() -> None:
    """Of four heads one is waited for, and one's results; without overlap all."""
    size = TOKENS / 2 * HEADS / 2 * DIM * 4  # bytes of a rank's queries from the other
    rates = (size / 0.05, 1e12)
    hidden = exposed(2, 1, rates, overlap=True, pieces=4)
    shown = exposed(2, 1, rates, overlap=False, pieces=4)
    # Forward: keys and values, queries, results; backward: gradients of results, queries, keys and values.
    assert shown == pytest.approx(8 * 0.05, rel=0.3)
    assert hidden <= 8 * 0.05 / 4 * 1.3


def test_messages_are_told() -> None:
    plan = SequencePlan(2, 2, "zigzag", (0, 64))
    links = [Delayed(link, (1e9, 1e9), 1e-3) for link in local_links(2, 2)]
    rows = [torch.randn(n, 4, 8) for n in plan.lengths]
    run_local(
        links,
        lambda link: attention(*[rows[link.rank]] * 3, None, plan, link=link),  # type: ignore[arg-type]
    )
    for link in links:
        told = {kind: [m for m in link.messages if m.kind == kind] for kind in ("heads", "ring")}
        assert [m.bytes for m in told["ring"]] == [2 * 32 * 2 * 8 * 4]
        assert sum(m.bytes for m in told["heads"]) == 4 * 16 * 2 * 8 * 4
        assert all(m.there - m.begun >= 1e-3 for m in link.messages)
