"""PagedAttentionPlan: the results of the two ops, for whatever batch it was last told, and their refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor

from afnext import ops
from tests.ops.attention_oracle import Case, make_case, offsets
from tests.ops.paged_cache import attend, empty_cache, fill

LIMITS = {"max_requests": 4, "max_pages": 20, "max_queries": 8}


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_plan(case: Case, pages: Tensor, **options: Any) -> ops.PagedAttentionPlan:
    return ops.PagedAttentionPlan(pages, case.q.shape[1], **(LIMITS | options))


def test_attends_as_the_op_does() -> None:
    """Batch after batch, through tensors that are longer than the batch."""
    case = make_case([3, 0, 1, 8], [40, 12, 200, 8], group=3, causal=True)
    case.window = (100, -1)
    cache = fill(case, 16)
    plan = make_plan(case, cache.k_pages, window=case.window)
    q, ends = torch.cat((case.q, torch.randn(5, 6, 64))), offsets(case.lengths_q)
    for count in (4, 1, 0, 3):
        tokens = int(ends[count])
        few = Case(
            case.q[:tokens], case.k, case.v, case.lengths_q[:count], [], causal=True, window=case.window
        )  # fmt: skip
        part = type(cache)(cache.k_pages, cache.v_pages, cache.table[:count], cache.lengths[:count])
        plan.update(part.table, ends[: count + 1], part.lengths)
        out, lse = plan.attend(q, cache.k_pages, cache.v_pages)
        expected, expected_lse = attend(few, part)
        assert torch.equal(out[:tokens], expected)
        assert torch.equal(lse[:, :tokens], expected_lse)
        plan.check()


def test_appends_as_the_op_does() -> None:
    before, new = [5, 0, 9], [4, 0, 7]
    totals = [a + b for a, b in zip(before, new, strict=True)]
    k, v = torch.randn(2, sum(new) + 3, 2, 64)
    rotation = (torch.arange(len(k)), 10.0 ** -torch.linspace(0, 4, 32))
    one = empty_cache(totals, 2, 8, 64)
    two = type(one)(one.k_pages.clone(), one.v_pages.clone(), one.table, one.lengths)
    now = slice(0, sum(new))
    ops.paged_append(
        k[now], v[now], one.k_pages, one.v_pages, one.table, offsets(new), int32(*before),
        rotation=(rotation[0][now], rotation[1]),
    )  # fmt: skip
    plan = ops.PagedAttentionPlan(two.k_pages, 2, **LIMITS)
    plan.update(two.table, offsets(new), two.lengths)
    plan.append(k, v, two.k_pages, two.v_pages, rotation=rotation)
    for name in ("k_pages", "v_pages"):
        assert torch.equal(getattr(two, name).nan_to_num(7), getattr(one, name).nan_to_num(7))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"page_table": int32(0, 5)[None]}, r"page_table\[0\] holds page 5 of a pool of 5"),
        ({"kv_lengths": int32(9)}, r"kv_lengths\[0\] = 9 needs 3 pages, page_table has 2"),
        (
            {"cu_seqlens": int32(0, 9)},
            "cu_seqlens_q gives request 0 9 tokens, the plan's limit is 8",
        ),
        ({"cu_seqlens": int32(1, 2)}, "cu_seqlens_q must rise"),
        ({"cu_seqlens": int32(0, 1, 2)}, "cu_seqlens_q must be int32"),
        ({"kv_lengths": torch.tensor([7])}, "kv_lengths must be int32"),
    ],
)
def test_a_batch_is_refused_as_the_op_does(change: dict[str, Tensor], said: str) -> None:
    pages = torch.zeros(5, 2, 4, 8)
    plan = ops.PagedAttentionPlan(pages, 2, **LIMITS)
    batch = {
        "page_table": int32(3, 1)[None],
        "cu_seqlens": int32(0, 2),
        "kv_lengths": int32(7),
    }
    plan.update(**batch)
    with pytest.raises(ValueError, match=f"^paged_attention: {said}"):
        plan.update(**(batch | change))


def test_limits() -> None:
    pages = torch.zeros(50, 2, 4, 8)
    plan = ops.PagedAttentionPlan(
        pages, 2, max_requests=2, max_pages=3, max_queries=4, max_tokens=5
    )
    table = torch.arange(12, dtype=torch.int32).view(3, 4)
    with pytest.raises(ValueError, match=r"needs 4 pages, the plan's limit is 3"):
        plan.update(table[:1], int32(0, 1), int32(13))
    with pytest.raises(ValueError, match="2 requests and 5 tokens, got 3 and 3"):
        plan.update(table, int32(0, 1, 2, 3), int32(1, 1, 1))
    with pytest.raises(ValueError, match="2 requests and 5 tokens, got 2 and 6"):
        plan.update(table[:2], int32(0, 3, 6), int32(3, 3))
    for wrong in ({"max_requests": 0}, {"max_pages": 0}, {"max_queries": 0}, {"max_splits": 0}):
        with pytest.raises(ValueError, match="limits of a plan must be positive"):
            ops.PagedAttentionPlan(pages, 2, **(LIMITS | wrong))


def test_tensors_that_do_not_fit_the_plan() -> None:
    pages = torch.zeros(5, 2, 4, 8)
    plan = ops.PagedAttentionPlan(pages, 4, **LIMITS)
    plan.update(int32(3, 1)[None], int32(0, 2), int32(7))
    x, few, other = torch.zeros(2, 4, 8), torch.zeros(1, 4, 8), torch.zeros(4, 2, 4, 8)
    for q, p, said in (
        (few, pages, "q must have a row for each token"),
        (x, other, "k_pages must have the plan's shape"),
        (torch.zeros(2, 6, 8), pages, "q must have the plan's number of heads"),
        (torch.tensor(1.0), pages, r"q must be \[T, Hq, D\]"),
        (x[..., :0], pages[..., :0], "q must have a head dim of 1 to 256"),
    ):
        with pytest.raises(ValueError, match=f"paged_attention: {said}"):
            plan.attend(q, p, p)
    k = torch.zeros(2, 2, 8)
    with pytest.raises(ValueError, match="paged_append: k must have a row for each token"):
        plan.append(k[:1], k[:1], pages, pages)
    plan.update(
        int32(3, 1)[None], int32(0, 3), int32(2)
    )  # attention may have more queries than keys
    with pytest.raises(ValueError, match="request 0 has more new tokens than kv_lengths"):
        plan.append(torch.zeros(3, 2, 8), torch.zeros(3, 2, 8), pages, pages)
    with pytest.raises(
        ValueError, match=r"k_pages must be \[P, Hkv, slot, D\] with Hkv dividing 3"
    ):
        ops.PagedAttentionPlan(pages, 3, **LIMITS)


def test_float8_pages_need_cuda() -> None:
    pages = torch.zeros(4, 2, 8, 64, dtype=torch.float8_e4m3fn)
    scales = {name: torch.zeros(4, 2, 8) for name in ("k_scales", "v_scales")}
    x, table = torch.zeros(1, 2, 64), torch.zeros(1, 1, dtype=torch.int32)
    for call in (
        lambda: ops.paged_append(x, x, pages, pages, table, int32(0, 1), int32(0), **scales),
        lambda: ops.paged_attention(x, pages, pages, table, int32(0, 1), int32(1), **scales),
    ):
        with pytest.raises(ValueError, match="k_pages of float8_e4m3fn need a CUDA device"):
            call()
