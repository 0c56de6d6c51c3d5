"""The model of cost: bytes are those that go, and what it chooses is what its figures say."""

from __future__ import annotations

import pytest
import torch

from afnext.parallel import SequencePlan, attention, local_links, run_local
from afnext.parallel.cost import H100, Machine, Shape, choose, cost, degrees
from afnext.parallel.delay import Delayed

FAST = Machine(1e15, 1e15, 1e12, 1e15, 1e15)


@pytest.mark.parametrize(("ulysses", "ring"), [(1, 4), (4, 1), (2, 2), (8, 1), (2, 3)])
@pytest.mark.parametrize("heads", [(28, 4), (8, 8)])
def test_bytes_are_those_that_go(ulysses: int, ring: int, heads: tuple[int, int]) -> None:
    """Of the rank with most heads and tokens: forward and backward, measured on the link."""
    tokens, dim = 48 * ulysses * ring, 8
    plan = SequencePlan(ulysses, ring, "zigzag", (0, tokens))
    links = [Delayed(link, (1e15, 1e15)) for link in local_links(ulysses, ring)]

    def of_rank(link: Delayed) -> None:
        q, k, v = (
            torch.randn(plan.lengths[link.rank], n, dim, requires_grad=True)
            for n in (heads[0], heads[1], heads[1])
        )
        attention(q, k, v, None, plan, link=link).sum().backward()

    run_local(links, of_rank)  # type: ignore[arg-type]
    wanted = cost(Shape(tokens, *heads, dim, 4, 4), ulysses, ring, FAST)
    for kind, most in (("heads", wanted.heads_bytes), ("ring", wanted.ring_bytes)):
        went = max(sum(m.bytes for m in link.messages if m.kind == kind) for link in links)
        # What comes home is of all heads, not of a rank's own: uneven heads differ by a fraction of one.
        assert went == pytest.approx(most, rel=0.0 if heads[0] % ulysses == 0 else 0.15)


def test_what_is_chosen_takes_least() -> None:
    for ranks in (1, 2, 4, 6, 8, 16, 28, 64):
        for tokens in (8_192, 131_072):
            shape = Shape(tokens)
            pair = choose(shape, ranks)
            assert pair[0] * pair[1] == ranks
            least = min(cost(shape, *other, H100).seconds for other in degrees(ranks, 28))
            assert cost(shape, *pair, H100).seconds == least


def test_what_decides() -> None:
    """Slow wires want a ring, whose keys are few (7 queries share one) and hide; eight Ulysses ranks of 28
    heads wait for those that have 4, four and two do not; a wire that is free wants whole sequences."""
    slow = Machine(1e13, 1e13, 1e12, 3e8, 3e8)
    assert choose(Shape(131_072), 4, slow) == (2, 2)
    assert cost(Shape(131_072), 1, 4, slow).seconds < cost(Shape(131_072), 4, 1, slow).seconds
    assert choose(Shape(131_072), 8, H100) == (4, 2)
    assert choose(Shape(131_072), 4, FAST) == (4, 1)
    assert choose(Shape(4096, 4, 4), 8, FAST)[0] <= 4  # no more ranks than heads
    with pytest.raises(ValueError, match="ranks must be at least 1, got 0"):
        choose(Shape(16), 0)


def test_overlap_never_costs_and_hides_no_more_than_there_is() -> None:
    for tokens in (2048, 131_072, 1 << 20):
        for ranks in (2, 8, 64):
            for pair in degrees(ranks, 28):
                found = cost(Shape(tokens), *pair, H100)
                assert 0.0 <= found.exposed <= found.communication * (1 + 1e-9)
