"""Plans: every token once, every visible pair once, the same work everywhere; what a wrong layout does."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afnext.parallel import Mask, SequencePlan, attention, local_links, run_local
from afnext.parallel.heads import head_plan

LAYOUTS = ("contiguous", "zigzag", "striped")


@st.composite
def plans(draw: st.DrawFn) -> SequencePlan:
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    ends = (0, *np.cumsum(lengths).tolist())
    return SequencePlan(
        draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.sampled_from(LAYOUTS)), ends
    )


@given(plan=plans())
@settings(deadline=None)
def test_every_token_has_one_rank(plan: SequencePlan) -> None:
    held = torch.cat([plan.tokens(rank) for rank in range(plan.size)])
    assert sorted(held.tolist()) == list(range(plan.total))
    assert plan.lengths == tuple(len(plan.tokens(rank)) for rank in range(plan.size))
    x = torch.randn(plan.total, 3)
    assert torch.equal(plan.unshard([plan.shard(x, r) for r in range(plan.size)]), x)


@given(plan=plans(), causal=st.booleans(), left=st.integers(-1, 12), right=st.integers(-1, 12))
@settings(deadline=None, max_examples=200)
def test_every_pair_that_may_see_is_computed_once(
    plan: SequencePlan, causal: bool, left: int, right: int
) -> None:
    """The calls of all ranks and steps, as the kernel masks them, against the mask itself; also those that
    set a rank's own tokens apart, for each rank of the Ulysses group.
    """
    mask = Mask(causal, (left, right))
    document = np.repeat(np.arange(len(plan.cu_seqlens) - 1), np.diff(plan.cu_seqlens))
    i, j = np.ogrid[: plan.total, : plan.total]
    wanted = document[:, None] == document[None]
    wanted &= (not causal) | (j <= i)
    wanted &= (left < 0) | (j >= i - left)
    wanted &= (right < 0) | (j <= i + right)
    for apart in (None, *range(plan.ulysses)):
        for whole in (True, False):
            computed, pairs = computed_by(plan, mask, apart, whole)
            assert np.array_equal(computed, wanted.astype(int))
            assert pairs == wanted.sum()


def computed_by(
    plan: SequencePlan, mask: Mask, apart: int | None, whole: bool
) -> tuple[np.ndarray, int]:
    """How often each query meets each key ``[total, total]``, and how many pairs calls say they have."""
    computed, pairs = np.zeros((plan.total, plan.total), int), 0
    for r in range(plan.ring):
        ranks = [plan.tokens(r * plan.ulysses + u) for u in range(plan.ulysses)]
        here = torch.cat(ranks).numpy()
        for step, together in enumerate(plan.steps(r, mask)):
            calls = together
            if apart is not None:
                share = plan.shares(r * plan.ulysses + apart, step, mask)
                between = 0 < step < plan.ring - 1 or plan.ulysses == 1
                others = share.rest if whole or step or between else share.yours + share.theirs
                calls = share.near + share.mine + others
                own = plan.tokens(r * plan.ulysses + apart).numpy()
                near = [here[c.q_start : c.q_stop] for c in share.near + share.mine]
                assert all(np.isin(rows, own).all() for rows in near)
            other = (r - step) % plan.ring
            there = torch.cat(
                [plan.tokens(other * plan.ulysses + u) for u in range(plan.ulysses)]
            ).numpy()
            for call in calls:
                pairs += call.pairs
                q_rows, k_rows = here[call.q_start : call.q_stop], there[call.k_start : call.k_stop]
                for (q0, q1), (k0, k1) in zip(
                    pairwise(call.cu_q.tolist()), pairwise(call.cu_k.tolist()), strict=True
                ):
                    a, b = np.ogrid[: q1 - q0, : k1 - k0]
                    off = b - a + (q1 - q0) - (k1 - k0)
                    seen = (off <= 0) | (not call.causal)
                    seen = seen & ((off >= -call.left) | (call.left < 0))
                    computed[np.ix_(q_rows[q0:q1], k_rows[k0:k1])] += seen
    return computed, pairs


@pytest.mark.parametrize("layout", ["zigzag", "striped"])
@pytest.mark.parametrize("ring", [2, 3, 8])
@pytest.mark.parametrize(
    "cu_seqlens", [(0, 40_000), (0, 13_001, 13_777, 40_000), tuple(range(0, 40_001, 250))]
)
def test_work_is_the_same_on_all_ranks_at_all_steps(
    layout: str, ring: int, cu_seqlens: tuple[int, ...]
) -> None:
    """To within 5 %, of one document, of three, of 160 short ones; contiguous parts are far from it."""
    work = np.array(SequencePlan(2, ring, layout, cu_seqlens).work())  # type: ignore[arg-type]
    short = len(cu_seqlens) > 100  # 250 tokens over 16 chunks: a chunk has 15 or 16
    assert np.ptp(work) <= (0.16 if short else 0.05) * work.mean()
    if not short:
        contiguous = np.array(SequencePlan(2, ring, "contiguous", cu_seqlens).work())
        assert np.ptp(contiguous) > work.mean()


def weights(plan: SequencePlan, tokens: list[Tensor]) -> Tensor:
    """Attention weights ``[T, T]`` between the tokens of the row, when ranks are given ``tokens``: with one
    channel a token as its value, the output is its weights.
    """
    total = plan.total
    q, k = torch.randn(total, 4, total) * 0.1, torch.randn(total, 4, total) * 0.1
    v = torch.eye(total)[:, None].expand(total, 4, total).contiguous()

    def of_rank(link) -> Tensor:
        rows = tokens[link.rank]
        return attention(q[rows], k[rows], v[rows], None, plan, link=link)

    out = torch.zeros(total, total)
    for rows, part in zip(
        tokens, run_local(local_links(plan.ulysses, plan.ring), of_rank), strict=True
    ):
        out[rows] = part.mean(1)
    return out


def leaky(plan: SequencePlan) -> list[Tensor]:
    """Tokens of each rank as the published hybrid zigzag has them: each Ulysses rank zigzags within its own
    part of the row. The second chunk of ring rank r is there ``size - 1 - r`` (and an offset), not the last
    but r of the row, which is what the ring's masks are made for.
    """
    size = plan.total // (2 * plan.size)
    found = []
    for rank in range(plan.size):
        ring_rank, ulysses_rank = divmod(rank, plan.ulysses)
        offset = 2 * plan.ring * ulysses_rank
        chunks = (ring_rank + offset, plan.size - 1 - ring_rank + offset)
        found.append(torch.cat([torch.arange(c * size, (c + 1) * size) for c in chunks]))
    return found


def future_leaks(w: Tensor) -> int:
    return int((w.triu(1) > 0).sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_token_sees_a_later_one_or_misses_an_earlier(layout: str) -> None:
    plan = SequencePlan(2, 2, layout, (0, 32))  # type: ignore[arg-type]
    w = weights(plan, [plan.tokens(rank) for rank in range(4)])
    assert future_leaks(w) == 0
    assert bool((w.tril() + torch.ones(32, 32).triu(1) > 0).all())


def test_the_published_layout_leaks() -> None:
    """The bug put back: 4 pairs of chunks see the future, as many are missed, and the check says so."""
    plan = SequencePlan(2, 2, "zigzag", (0, 32))
    w = weights(plan, leaky(plan))
    chunks = w.view(8, 4, 8, 4).amax((1, 3)) > 0
    assert future_leaks(w) > 0
    assert int(chunks.triu(1).sum()) == 4
    assert int((~chunks).tril(-1).sum()) == 4


def test_heads_stay_within_their_groups() -> None:
    """28 query heads over 8 ranks: 3 and 4 of each key head."""
    plan = head_plan(28, 4, 8)
    assert plan.keys.heads == (0, 0, 1, 1, 2, 2, 3, 3)
    assert plan.queries[0].counts == (3, 4) * 4
    assert [p.k_start for p in plan.pieces[0]] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_first_and_the_last_piece_are_small() -> None:
    """Nothing hides them; and none is of two key heads unless it has all that read them."""
    plan = head_plan(28, 4, 2, 6)
    assert [blocks.counts for blocks in plan.queries] == [(n, n) for n in (1, 2, 4, 4, 2, 1)]
    assert [(r.blocks.heads, r.first, r.last) for r in plan.rounds] == [
        ((0, 2), 0, 2),
        ((1, 3), 3, 5),
    ]
    assert [b.counts[0] for b in head_plan(28, 4, 1, 3).queries] == [7, 14, 7]
    assert [b.counts[0] for b in head_plan(28, 4, 4, 6).queries] == [1, 1, 2, 2, 1]


@given(
    group=st.integers(1, 8),
    keys=st.integers(1, 8),
    ranks=st.integers(1, 16),
    pieces=st.integers(1, 5),
)
def test_every_query_head_has_one_rank_and_its_key_head(
    group: int, keys: int, ranks: int, pieces: int
) -> None:
    if ranks > group * keys:
        with pytest.raises(ValueError, match="more ranks than"):
            head_plan(group * keys, keys, ranks, pieces)
        return
    plan = head_plan(group * keys, keys, ranks, pieces)
    seen = []
    for rank in range(ranks):
        held = plan.keys.heads[plan.keys.offsets[rank] : plan.keys.offsets[rank + 1]]
        for blocks, own in zip(plan.queries, plan.own(rank), strict=True):
            heads = blocks.heads[blocks.offsets[rank] : blocks.offsets[rank + 1]]
            seen += heads
            for place, head in enumerate(heads):
                key = own.k_start + place // (own.queries // (own.k_stop - own.k_start))
                assert held[key] == head // group
        for number, head in enumerate(held):
            came = plan.rounds[number]
            assert came.blocks.heads[sum(came.blocks.counts[:rank])] == head
            reads = [i for i, p in enumerate(plan.own(rank)) if p.k_start <= number < p.k_stop]
            assert came.first <= min(reads) <= max(reads) <= came.last
    assert sorted(seen) == list(range(group * keys))
    per_rank = [sum(b.counts[r] for b in plan.queries) for r in range(ranks)]
    assert max(per_rank) - min(per_rank) <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 1, "zigzag", (0, 4)), "ulysses must be an integer >= 1, got 0"),
        ((1, 1.5, "zigzag", (0, 4)), "ring must be an integer >= 1, got 1.5"),
        (
            (1, 1, "zigzig", (0, 4)),
            "layout must be one of contiguous, zigzag, striped, got 'zigzig'",
        ),
        ((1, 1, "zigzag", (0,)), "cu_seqlens must rise from 0"),
        ((1, 1, "zigzag", (0, 4, 3)), "cu_seqlens must rise from 0"),
        ((1, 1, "zigzag", (1, 4)), "cu_seqlens must rise from 0"),
    ],
)
def test_a_bad_plan_says_why(arguments: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SequencePlan(*arguments)


def test_bad_arguments_of_a_plan_are_named() -> None:
    plan = SequencePlan(2, 1, "zigzag", torch.tensor([0, 6], dtype=torch.int32))  # type: ignore[arg-type]
    assert plan.cu_seqlens == (0, 6)
    with pytest.raises(ValueError, match=r"rank must be 0 to 1 .* got 2"):
        plan.tokens(2)
    with pytest.raises(ValueError, match="x must have 6 rows"):
        plan.shard(torch.zeros(5), 0)
    with pytest.raises(ValueError, match=r"parts must have \[3, 3\] rows, got \[3\]"):
        plan.unshard([torch.zeros(3)])


def test_what_a_plan_works_out_is_kept_and_goes_with_it() -> None:
    """Of a long row it is megabytes, and every batch has a plan of its own."""
    plan = SequencePlan(2, 2, "zigzag", (0, 64))
    assert plan.shares(1, 0) is plan.shares(1, 0)
    assert plan.steps(1) is plan.steps(1)
    tensors = [weakref.ref(c.cu_q) for c in (plan.shares(1, 0).near[0], plan.steps(1)[0][0])]
    del plan
    gc.collect()
    assert [tensor() for tensor in tensors] == [None, None]
