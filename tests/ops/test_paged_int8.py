"""Pages of int8: what paged_append writes, and attention over it held to float64 on what was written."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from afnext import ops
from tests.ops.attention_oracle import Case, assert_gold, make_case, offsets, oracle
from tests.ops.paged_cache import Cache, empty_cache

DTYPES = [torch.float32, torch.bfloat16]


def quantized_cache(lengths: list[int], heads: int, slots: int, dim: int) -> tuple[Cache, Any]:
    """An empty cache of int8 pages, and its scales, NaN where nothing was written."""
    cache = empty_cache(lengths, heads, slots, dim)
    cache.k_pages, cache.v_pages = (
        torch.full(cache.k_pages.shape, 77, dtype=torch.int8) for _ in range(2)
    )
    names = ("k_scales", "v_scales")
    return cache, {name: torch.full(cache.k_pages.shape[:3], torch.nan) for name in names}


def append(case: Case, cache: Cache, scales: dict[str, Tensor], **options: object) -> None:
    start = torch.zeros(len(case.lengths_k), dtype=torch.int32)
    ops.paged_append(
        case.k, case.v, cache.k_pages, cache.v_pages, cache.table, offsets(case.lengths_k), start,
        **options, **scales,
    )  # fmt: skip


def written(cache: Cache, scales: dict[str, Tensor]) -> list[Tensor]:
    """Keys and values as the pages hold them, in float64, request after request."""
    pages = (cache.k_pages, scales["k_scales"]), (cache.v_pages, scales["v_scales"])
    return [
        torch.cat([cache.gather(p.double() * s[..., None], n) for n in range(len(cache.lengths))])
        for p, s in pages
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("slots", "dim"), [(1, 1), (16, 64), (48, 33), (32, 128)])
def test_rows_come_back_within_half_a_step(
    backend: str, dtype: torch.dtype, slots: int, dim: int
) -> None:
    case = make_case([30, 0, 1, 70], kv_heads=3, dim=dim, dtype=dtype)
    cache, scales = quantized_cache(case.lengths_k, 3, slots, dim)
    case.k[2], case.v[30, 1] = 0.0, 1e30
    times, inv_freq = torch.arange(101), 10.0 ** -torch.linspace(0, 4, dim // 2)
    append(case, cache, scales, rotation=(times, inv_freq))
    turned = ops.rotate(case.k.float(), times, inv_freq)
    for got, wanted in zip(written(cache, scales), (turned, case.v), strict=True):
        peak = wanted.double().abs().amax(-1, keepdim=True)
        # Half of a 127th, and the rounding of the scale, of its inverse and of the rotation.
        assert ((got - wanted.double()).abs() <= peak * (0.5 / 127 + 1e-6)).all()
    # Nothing else was touched.
    assert int((~scales["k_scales"].isnan()).sum()) == 101 * 3


def check(case: Case, slots: int) -> None:
    """Attention over what the pages hold, within the gold standard."""
    cache, scales = quantized_cache(case.lengths_k, case.k.shape[1], slots, case.k.shape[2])
    append(case, cache, scales)
    rotation = None if case.inv_freq is None else (case.times_q, case.inv_freq)
    out, lse = ops.paged_attention(
        case.q, cache.k_pages, cache.v_pages, cache.table, offsets(case.lengths_q), cache.lengths,
        causal=case.causal, window=case.window, rotation=rotation, **scales,
    )  # fmt: skip
    q, dtype = case.q, case.q.dtype
    if case.inv_freq is not None:
        assert case.times_q is not None
        q = ops.rotate(q.double().float(), case.times_q, case.inv_freq).to(dtype)
    held = Case(
        q, *written(cache, scales), case.lengths_q, case.lengths_k,
        causal=case.causal, window=case.window,
    )  # fmt: skip
    results = [
        dict(zip(("out", "lse"), oracle(held, d), strict=True)) for d in (dtype, torch.float64)
    ]
    torchs, truth = ({name: x.double() for name, x in r.items()} for r in results)
    assert_gold({"out": out.double(), "lse": lse.double()}, torchs, truth, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 16, 64])
@pytest.mark.parametrize("lengths_q", [[1, 1, 0, 1], [40, 3, 0, 77]])
def test_attention_matches_float64_on_what_the_pages_hold(
    backend: str, dtype: torch.dtype, slots: int, lengths_q: list[int]
) -> None:
    """Decode and chunks of a prefill, the longest one through attention's own kernel."""
    case = make_case(
        lengths_q, [200, 1100, 5, 80], kv_heads=2, group=7, dim=64, dtype=dtype, causal=True,
        turned=True,
    )  # fmt: skip
    check(case, slots)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("group", "dim"), [(1, 1), (3, 3), (4, 33), (9, 100), (8, 128), (7, 200), (2, 256)]
)
def test_any_group_and_head_dim(backend: str, dtype: torch.dtype, group: int, dim: int) -> None:
    """Whole registers and parts of them; windows that begin and end within a chunk of keys."""
    case = make_case([1, 2, 5], [130, 300, 5], group=group, dim=dim, dtype=dtype, causal=True)
    case.window = (170, -1)
    check(case, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_small_weights_beside_a_large_one(backend: str, dtype: torch.dtype) -> None:
    """Weights of 1e-5 that fixed steps of the largest would round away add up to 4 % of the output."""
    q, k, v = torch.zeros(1, 2, 64), torch.zeros(4000, 2, 64), torch.ones(4000, 2, 64)
    q[..., 0], k[0, :, 0], v[0] = 8.0, math.log(1e5), 0.0  # scale = 1 / 8
    case = Case(q.to(dtype), k.to(dtype), v.to(dtype), [1], [4000], causal=True)
    cache, scales = quantized_cache([4000], 2, 32, 64)
    append(case, cache, scales)
    pages = (cache.k_pages, cache.v_pages, cache.table)
    out, _ = ops.paged_attention(case.q, *pages, offsets([1]), cache.lengths, **scales)
    truth, _ = oracle(Case(case.q, *written(cache, scales), [1], [4000]), torch.float64)
    assert truth.min() > 0.03
    # Half a unit in the last place of the values in bf16.
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=2**-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_spoils_the_queries_that_see_it(backend: str, dtype: torch.dtype, value: float) -> None:
    """In a key, in a value, in a query; all others stay as they were."""
    outs = []
    for spoil in (False, True):
        torch.manual_seed(0)
        case = make_case([4], [300], group=2, dim=64, dtype=dtype, causal=True)
        if spoil:
            case.k[298, 0, 5] = case.v[200, 1, 6] = case.q[0, 1, 7] = value
        cache, scales = quantized_cache([300], 2, 8, 64)
        append(case, cache, scales)
        pages = (cache.k_pages, cache.v_pages, cache.table)
        out, _ = ops.paged_attention(case.q, *pages, offsets([4]), cache.lengths, **scales)
        outs.append(out)
    spoiled = torch.zeros(4, 4, dtype=torch.bool)
    spoiled[2:, :2] = spoiled[:, 2:] = spoiled[0, 1] = True
    assert torch.equal(outs[1].isnan().all(-1), spoiled)
    assert torch.equal(outs[1][~spoiled], outs[0][~spoiled])


def test_nan_shows(backend: str) -> None:
    """A row that held a NaN or an infinity reads as NaN, the others as they were."""
    case = make_case([20])
    case.k[3, 0, 5], case.v[4, 1, 6] = torch.nan, torch.inf
    cache, scales = quantized_cache([20], 2, 8, 64)
    append(case, cache, scales)
    for rows, token, head in zip(written(cache, scales), (3, 4), (0, 1), strict=True):
        bad = rows.isnan().all(-1)
        assert bad[token, head]
        assert int(bad.sum()) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k_scales": None}, "k_scales"),
        ({"v_scales": None}, "v_scales"),
        ({"k_scales": torch.zeros(4, 2, 9)}, "k_scales"),
        ({"v_scales": torch.zeros(4, 2, 8, dtype=torch.float64)}, "v_scales"),
        ({"v_pages": torch.zeros(4, 2, 8, 64)}, "v_pages"),
        ({"k_pages": torch.zeros(4, 2, 8, 64), "v_pages": torch.zeros(4, 2, 8, 64)}, "k_scales"),
    ],
)
def test_refusal_names_the_argument(backend: str, change: dict[str, Any], named: str) -> None:
    pages = torch.zeros(4, 2, 8, 64, dtype=torch.int8)
    scales = {"k_scales": torch.zeros(4, 2, 8), "v_scales": torch.zeros(4, 2, 8)}
    table, one = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
    shared = {"k_pages": pages, "v_pages": pages, "page_table": table, **scales} | change
    x = torch.zeros(1, 2, 64)
    with pytest.raises(ValueError, match=f"paged_append: {named}"):
        ops.paged_append(k=x, v=x, cu_seqlens=offsets([1]), start=one - 1, **shared)
    with pytest.raises(ValueError, match=f"paged_attention: {named}"):
        ops.paged_attention(q=x, cu_seqlens_q=offsets([1]), kv_lengths=one, **shared)


def test_opcheck() -> None:
    case = make_case([5, 3], dim=8)
    cache, scales = quantized_cache([5, 3], 2, 4, 8)
    append(case, cache, scales)
    pages = (cache.k_pages, cache.v_pages, cache.table)
    cu, zero = offsets([5, 3]), torch.zeros(2, dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.afnext.paged_append.default,
        (case.k, case.v, *pages, cu, zero, None, None, False, *scales.values()),
    )
    torch.library.opcheck(
        torch.ops.afnext.paged_attention.default,
        (case.q, *pages, cu, cache.lengths, None, None, False, True, -1, -1, 0.3, *scales.values()),
    )
