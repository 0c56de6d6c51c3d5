"""Pages of int8: what paged_append writes, and attention over it held to float64 on what was written."""

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 16, 64])
@pytest.mark.parametrize("lengths_q", [[1, 1, 0, 1], [40, 3, 0, 77]])
def test_attention_matches_float64_on_what_the_pages_hold(
    backend: str, dtype: torch.dtype, slots: int, lengths_q: list[int]
) -> None:
    """Decode and chunks of a prefill, the longest one through attention's own kernel."""
    lengths_k = [200, 1100, 5, 80]
    case = make_case(
        lengths_q, lengths_k, kv_heads=2, group=7, dim=64, dtype=dtype, causal=True, turned=True
    )
    cache, scales = quantized_cache(lengths_k, 2, slots, 64)
    append(case, cache, scales)
    out, lse = ops.paged_attention(
        case.q, cache.k_pages, cache.v_pages, cache.table, offsets(lengths_q), cache.lengths,
        rotation=(case.times_q, case.inv_freq), **scales,
    )  # fmt: skip
    assert case.times_q is not None
    assert case.inv_freq is not None
    held = Case(
        ops.rotate(case.q.double().float(), case.times_q, case.inv_freq).to(dtype),
        *written(cache, scales), lengths_q, lengths_k, causal=True,
    )  # fmt: skip
    results = [
        dict(zip(("out", "lse"), oracle(held, d), strict=True)) for d in (dtype, torch.float64)
    ]
    torchs, truth = ({name: x.double() for name, x in r.items()} for r in results)
    assert_gold({"out": out.double(), "lse": lse.double()}, torchs, truth, dtype)


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
