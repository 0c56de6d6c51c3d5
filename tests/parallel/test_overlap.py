"""While a block is computed the next is on its way: what is left to wait for, on links made slow.

Computing is a sleep here, as long as the block's work wants it, so that a busy machine changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from afnext.parallel import SequencePlan, attention, local_links, run_local
from afnext.parallel.delay import Delayed, paced
from benchmarks import sequence_parallel, timeline

pytestmark = pytest.mark.slow

TOKENS, HEADS, DIM = 128, 8, 32
# Of one rank alone, forward and backward alike: a busy machine wakes sleepers 10 ms late.
SECONDS = 1.6
LEFT = 0.1
"""Of what is waited for without overlap: the most that may be left of it."""
TRIES = 20
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


def check_hidden(
    ulysses: int, ring: int, rates: tuple[float, float], least: float, pieces: int
) -> None:
    """Without overlap about ``least`` seconds are waited for, or more. With it a tenth: a busy machine, which
    wakes sleepers late, only adds to that, so that one try of several shows it.
    """
    shown = exposed(ulysses, ring, rates, overlap=False, pieces=pieces)
    assert shown >= 0.95 * least  # what is measured is there
    hidden = math.inf
    for _ in range(TRIES):
        hidden = min(hidden, exposed(ulysses, ring, rates, overlap=True, pieces=pieces))
        if hidden <= LEFT * shown:
            break
    assert hidden <= LEFT * shown


@pytest.mark.usefixtures("sleeping")
@pytest.mark.parametrize("ring", [2, 4])
def test_a_ring_hides_behind_what_it_feeds(ring: int) -> None:
    """A step's messages take about half as long as its work: at most a tenth of them is waited for."""
    step = 2 * TOKENS / ring * HEADS * DIM * 4  # bytes of keys and values
    compute = SECONDS / ring / ring  # seconds of a step on a rank
    rates = (1e12, 2 * step / (0.5 * compute))  # keys, and gradients as large, in half of it
    check_hidden(1, ring, rates, 0.5 * (ring - 1) * 0.75 * compute, pieces=2)


@pytest.mark.usefixtures("sleeping")
@pytest.mark.parametrize("pieces", [4, 6])
def test_heads_arrive_while_others_are_computed(pieces: int) -> None:
    """The first and the last behind a rank's own tokens; without overlap all are waited for."""
    size = TOKENS / 2 * HEADS / 2 * DIM * 4  # bytes of a rank's queries from the other
    rates = (size / 0.05, 1e12)
    # Forward: keys and values, queries, results; backward: gradients of results, queries, keys and values.
    check_hidden(2, 1, rates, 8 * 0.05, pieces)


def test_a_timeline_has_every_kernel_and_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all ranks. Without overlap none computes while something is on its way to it."""
    drawn: list[Mapping[str, Sequence[timeline.Spans]]] = []
    draw = timeline.draw
    monkeypatch.setattr(timeline, "draw", lambda *given: (drawn.append(given[1]), draw(*given)))
    monkeypatch.setattr(sequence_parallel, "PACED_SECONDS", 0.2)
    sequence_parallel.draw_timeline(tmp_path / "timeline.svg")
    assert (tmp_path / "timeline.svg").read_text().count("<path") > 100
    for name, ranks in drawn[0].items():
        assert len(ranks) == 4
        for rank in ranks:
            assert all(rank.values())  # forward, backward, waits, heads and ring
            computed = [*rank["forward"], *rank["backward"]]
            sent = [*rank["heads"], *rank["ring"]]
            both = sum(a < d + e and d < a + b for a, b in computed for d, e in sent)
            assert (both > 0) == (name == "overlapped")


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
