"""Attention over ranks is attention of one: outputs and gradients, with threads and with gloo processes."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from afnext import ops
from afnext.errors import AfnextError
from afnext.parallel import SequencePlan, attention, local_links, run_local, world_link
from tests.parallel.cases import NAMES, Case, error, errors_in_group, local, of_rank, stalled, whole
from tests.parallel.processes import spawn

pytestmark = pytest.mark.slow

LAYOUTS = ("contiguous", "zigzag", "striped")
DEGREES = ((1, 4), (4, 1), (2, 2), (1, 3), (8, 1))
CLOSE = 2e-6
"""Of float32, whose sums are in another order: the largest difference, beside the largest value of the whole
result (or 1); small values may be further off beside themselves. What is measured is 7e-7 at most.
"""


def check(case: Case, close: float = CLOSE) -> None:
    for name, got, wanted in zip(NAMES, local(case), whole(case), strict=True):
        assert error(got, wanted) <= close, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("ulysses", "ring"), DEGREES)
def test_is_attention_of_one_process(ulysses: int, ring: int, layout: str) -> None:
    """28 query and 4 key heads (over 8 ranks 3 or 4 each), documents that cross borders of shards. Equal to
    within ``CLOSE`` of the largest value.
    """
    check(Case(ulysses, ring, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("ulysses", "ring"), [(1, 4), (2, 2)])
@pytest.mark.parametrize(
    ("causal", "window"), [(True, (9, -1)), (False, None), (False, (30, 4)), (False, (-1, 2))]
)
def test_windows(
    ulysses: int, ring: int, layout: str, causal: bool, window: tuple[int, int] | None
) -> None:
    check(Case(ulysses, ring, layout, causal=causal, window=window))


@pytest.mark.parametrize(
    ("ulysses", "ring", "heads"),
    [
        (7, 1, (28, 4)),
        (3, 2, (28, 4)),
        (3, 1, (6, 6)),
        (2, 2, (4, 1)),
        (5, 1, (8, 4)),
        (6, 1, (6, 2)),
    ],
)
def test_heads_that_do_not_divide(ulysses: int, ring: int, heads: tuple[int, int]) -> None:
    """A rank's heads may be parts of several groups; key heads go to all who read them."""
    check(Case(ulysses, ring, heads=heads))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cu_seqlens", [(0, 3), (0, 0), (0, 1, 2, 3, 4), (0, 64)])
def test_few_tokens(layout: str, cu_seqlens: tuple[int, ...]) -> None:
    """Fewer than ranks: some have none."""
    check(Case(2, 3, layout, cu_seqlens, heads=(4, 2)))


@pytest.mark.parametrize("pieces", [1, 3, 7])
@pytest.mark.parametrize("overlap", [True, False])
def test_any_number_of_pieces(pieces: int, overlap: bool) -> None:
    check(Case(2, 2, options=(("pieces", pieces), ("overlap", overlap))))


def test_without_rotation() -> None:
    check(Case(2, 2, turned=False))


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16(grad_dtype: torch.dtype) -> None:
    """Rounding to 8 bits at the end of each step; the sums themselves are float32, so the result is about as
    far from float32's as one process is."""
    case = Case(2, 2, dtype=torch.bfloat16, options=(("grad_dtype", grad_dtype),))
    truth, one = whole(case, torch.float32), whole(case)
    for name, got, alone, wanted in zip(NAMES, local(case), one, truth, strict=True):
        assert error(got, wanted) <= 3 * error(alone, wanted), name


def test_in_plain_torch() -> None:
    """As on a device without kernels: backward by parts holds there too."""
    with ops.force_reference():
        check(Case(2, 2, cu_seqlens=(0, 5, 37), heads=(4, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("world", [3, 4, 8])
def test_is_attention_of_one_process_between_processes(world: int) -> None:
    cases = [
        Case(u, r, layout, window=window)
        for u, r in DEGREES
        if u * r == world
        for layout, window in zip(LAYOUTS, (None, None, (9, -1)), strict=True)
    ]
    for case, *errors in zip(cases, *spawn(world, errors_in_group, cases), strict=True):
        for rank, of_names in enumerate(errors):
            for name, value in zip(NAMES, of_names, strict=True):
                assert value <= CLOSE, f"{case}: {name} of rank {rank}"


@pytest.mark.sweep
@pytest.mark.parametrize("world", [3, 4, 8])
def test_all_combinations_between_processes(world: int) -> None:
    cases = [
        Case(u, r, layout, cu, heads, window=window, causal=causal)
        for u in range(1, world + 1)
        for r in [world // u]
        if u * r == world
        for layout in LAYOUTS
        for cu in ((0, 1030), (0, 200, 203, 777, 1001))
        for heads in ((28, 4), (8, 8))
        for causal, window in ((True, None), (True, (100, -1)), (False, (50, 20)))
    ]
    for case, *errors in zip(cases, *spawn(world, errors_in_group, cases), strict=True):
        assert max(max(part) for part in errors) <= CLOSE, case


def test_what_does_not_fit_is_named() -> None:
    plan = SequencePlan(1, 2, "zigzag", (0, 10))
    q = torch.zeros(5, 2, 8)
    with pytest.raises(
        ValueError, match=r"plan has ulysses 1 x ring 2 ranks, but torch.distributed"
    ):
        attention(q, q, q, None, plan)
    link = local_links(2, 1)[1]
    with pytest.raises(ValueError, match=r"the link has 2 x 1 \(seen by rank 1\)"):
        attention(q, q, q, None, plan, link=link)
    link = local_links(1, 2)[1]
    with pytest.raises(ValueError, match=r"k must be \[5, heads, dim\], the tokens of rank 1"):
        attention(q, q[:4], q[:4], None, plan, link=link)
    with pytest.raises(ValueError, match="v must be"):
        attention(q, q, q[:, :1], None, plan, link=link)
    with pytest.raises(ValueError, match="times and inv_freq go together"):
        attention(q, q, q, torch.zeros(5), plan, link=link)
    with pytest.raises(ValueError, match="grad_dtype must be"):
        attention(q, q, q, None, plan, link=link, grad_dtype=torch.float16)
    with pytest.raises(ValueError, match="window must be"):
        attention(q, q, q, None, plan, link=link, window=(-2, 0))
    links = local_links(4, 1)
    wide = replace(Case(4, 1), heads=(2, 2))
    with pytest.raises(ValueError, match=r"plan.ulysses is 4, more ranks than q's 2 heads"):
        of_rank(wide, links[0], 0)


def test_a_message_that_does_not_come_names_the_ranks() -> None:
    case, links = Case(1, 2), local_links(1, 2, timeout=0.3)
    with pytest.raises(AfnextError, match=r"rank 0: waiting for rank 1: nothing came in 0 s"):
        of_rank(case, links[0], 0)


def links_of_two_groups(folder: str) -> list[bool]:
    """Whether a link is kept with its group, and whether it goes with it."""
    links = [world_link(1, 1), world_link(1, 1)]
    kept = links[0] is links[1]
    gone = weakref.ref(links.pop())
    links.clear()
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.FileStore(folder, 1), rank=0, world_size=1)
    world_link(1, 1)
    gc.collect()
    return [kept, gone() is None]


@pytest.mark.slow
def test_the_link_of_a_group_that_is_destroyed_goes(tmp_path: Path) -> None:
    assert spawn(1, links_of_two_groups, str(tmp_path / "store")) == [[True, True]]


@pytest.mark.slow
def test_a_process_that_stalls_is_named() -> None:
    said = spawn(2, stalled)
    assert "rank 0: the ring's message from rank 1 did not come to an end" in said[0]


@pytest.mark.parametrize("first", ["sender", "receiver"])
def test_a_local_message_arrives_before_it_is_waited_for(first: str) -> None:
    """As soon as both ranks have asked for it, whichever was first: its copy hides behind what follows."""
    links, sent, into = local_links(1, 2), torch.arange(3.0), torch.zeros(3)
    calls = [lambda: links[0].shift([], [sent]), lambda: links[1].shift([into], [])]
    works = [call() for call in (calls if first == "sender" else reversed(calls))]
    assert torch.equal(into, sent)
    for work in works:
        work.wait()


def test_a_rank_that_fails_ends_the_others() -> None:
    case, links = Case(1, 2), local_links(1, 2)

    def one_fails(link) -> None:
        if link.rank:
            raise ZeroDivisionError
        of_rank(case, link, 0)

    with pytest.raises(ZeroDivisionError):
        run_local(links, one_fails)
