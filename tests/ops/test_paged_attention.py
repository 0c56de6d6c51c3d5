"""paged_attention: held to float64 and to attention over contiguous keys, on every instruction set.

Also: any slot size, permuted pages, garbage where nothing is read, chunked prefill, split keys,
threads, memory bounds, bad input, registration.
"""

import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from afnext import ops
from afnext.ops import runtime
from tests.ops.attention_oracle import Case, assert_gold, call, make_case, offsets, oracle
from tests.ops.paged_cache import Cache, attend, empty_cache, fill
from tests.ops.test_attention import at_the_edge

DTYPES = [torch.float32, torch.bfloat16]


def with_turned_queries(case: Case) -> Case:
    """Queries turn; keys, which were turned when they were appended, turn by nothing."""
    case.times_q = torch.rand(len(case.q)) * 1e6
    case.times_k = torch.zeros(len(case.k))
    case.inv_freq = 10.0 ** -torch.linspace(0, 4, max(case.q.shape[2] // 4, 1))
    return case


def check(case: Case, slots: int) -> None:
    ours, torchs, truth = (
        {"out": out.double(), "lse": lse.double()}
        for out, lse in (
            attend(case, fill(case, slots)),
            oracle(case, case.q.dtype),
            oracle(case, torch.float64),
        )
    )
    assert_gold(ours, torchs, truth, case.q.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 16, 32, 48])
@pytest.mark.parametrize(("kv_heads", "group", "dim"), [(2, 7, 128), (3, 1, 64), (1, 3, 80)])
def test_decode(
    backend: str, dtype: torch.dtype, slots: int, kv_heads: int, group: int, dim: int
) -> None:
    lengths = [1, 0, 33, 150]
    case = make_case([1] * 4, lengths, kv_heads=kv_heads, group=group, dim=dim, dtype=dtype)
    case.causal = True
    check(with_turned_queries(case), slots)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4, 7])
@pytest.mark.parametrize("window", [None, (20, -1), (3, 2), (0, 0), (-1, 9)])
def test_chunk_of_prefill(
    backend: str, dtype: torch.dtype, group: int, window: tuple[int, int] | None
) -> None:
    """Ragged chunks, more queries than keys, no queries, no keys, more rows than a work item."""
    case = make_case([5, 0, 70, 9, 3], [40, 12, 90, 4, 0], group=group, dim=64, dtype=dtype)
    case.causal, case.window = group != 4, window
    check(with_turned_queries(case), 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_keys(backend: str, dtype: torch.dtype) -> None:
    """Long decodes are computed in parts of 1024 keys and merged."""
    case = make_case([1, 2, 30], [1024, 3000, 2049], kv_heads=1, group=5, dim=64, dtype=dtype)
    case.causal, case.window = True, (1500, -1)
    check(case, 48)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 17, 31, 40, 72, 100, 255, 256])
def test_any_head_dim(backend: str, dim: int) -> None:
    case = make_case([7, 20], [37, 20], group=3, dim=dim, causal=True)
    check(with_turned_queries(case) if dim > 1 else case, 16)
    check(make_case([1], [40], group=9, dim=dim, dtype=torch.bfloat16, causal=True), 16)


def test_interleaved(backend: str) -> None:
    case = with_turned_queries(make_case([7, 1], [37, 20], group=2, causal=True))
    case.interleaved = True
    check(case, 16)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 4))
    lengths_q = draw(st.lists(st.integers(0, 60), min_size=count, max_size=count))
    lengths_k = draw(st.lists(st.integers(0, 150), min_size=count, max_size=count))
    side = st.integers(-1, 90)
    torch.manual_seed(draw(st.integers(0, 1000)))
    return make_case(
        lengths_q, lengths_k,
        kv_heads=draw(st.integers(1, 3)), group=draw(st.integers(1, 9)),
        dim=draw(st.sampled_from([4, 24, 33])), dtype=draw(st.sampled_from(DTYPES)),
        causal=draw(st.booleans()), window=draw(st.none() | st.tuples(side, side)),
    )  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=cases(), slots=st.integers(1, 50))
def test_any_case(backend: str, case: Case, slots: int) -> None:
    check(case, slots)


def prefilled(case: Case, chunks: list[int], slots: int) -> tuple[Tensor, Tensor, Cache]:
    """One sequence through the cache a chunk at a time, keys turned when appended."""
    tokens, heads, dim = case.k.shape
    cache = empty_cache([tokens], heads, slots, dim, case.k.dtype)
    outs, lses, start = [], [], 0
    for chunk in chunks:
        now = slice(start, start + chunk)
        ends = torch.tensor([0, chunk], dtype=torch.int32)
        held = torch.tensor([start], dtype=torch.int32)
        q, k, v = case.q[now], case.k[now], case.v[now]
        assert case.times_q is not None
        assert case.inv_freq is not None
        rotation = (case.times_q[now], case.inv_freq)
        pages = (cache.k_pages, cache.v_pages, cache.table)
        ops.paged_append(k, v, *pages, ends, held, rotation=rotation)
        out, lse = ops.paged_attention(q, *pages, ends, held + chunk, rotation=rotation)
        outs.append(out)
        lses.append(lse)
        start += chunk
    return torch.cat(outs), torch.cat(lses, dim=1), cache


@pytest.mark.parametrize("chunks", [[90], [40, 50], [1] * 90, [64, 1, 1, 24]])
def test_chunks_equal_one_shot(backend: str, chunks: list[int]) -> None:
    """Prefill in chunks, decode, and attention over contiguous keys are the same function."""
    case = make_case([90], group=2, dim=64, causal=True, turned=True)
    case.times_k = case.times_q
    out, lse, _ = prefilled(case, chunks, 16)
    expected, expected_lse = call(ops.attention, case)
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(lse, expected_lse, rtol=2e-6, atol=2e-6)


def test_pages_do_not_matter(backend: str) -> None:
    """Other slot sizes and other pages give the same bits."""
    case = with_turned_queries(make_case([3, 1], [200, 1100], group=3, causal=True))
    expected = attend(case, fill(case, 1))
    for slots in (16, 32, 48, 2048):
        for got, wanted in zip(attend(case, fill(case, slots)), expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("isa", runtime.available_cpu_isas())
def test_threads_and_the_batch_change_nothing(isa: str) -> None:
    case = make_case([1, 80, 2], [2500, 300, 40], group=3, dtype=torch.bfloat16, causal=True)
    cache = fill(case, 16)
    isa_before, before = runtime.cpu_isa(), runtime.num_threads()
    runtime.set_cpu_isa(isa)
    results = []
    try:
        for threads in (1, 2, 3, 16):
            runtime.set_num_threads(threads)
            results.append(attend(case, cache))
        starts = offsets(case.lengths_q).tolist()
        for n in range(3):
            now = slice(starts[n], starts[n + 1])
            alone = Case(case.q[now], case.k, case.v, [case.lengths_q[n]], [], causal=True)
            one = Cache(
                cache.k_pages, cache.v_pages, cache.table[n : n + 1], cache.lengths[n : n + 1]
            )
            out, lse = attend(alone, one)
            assert torch.equal(out, results[0][0][now])
            assert torch.equal(lse, results[0][1][:, now])
    finally:
        runtime.set_num_threads(before)
        runtime.set_cpu_isa(isa_before)
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(lse, results[0][1])


def test_strided_queries(backend: str) -> None:
    case = make_case([6, 1], [30, 20], group=2, dim=32, causal=True)
    wide = torch.randn(7, 9, 40)
    case.q = wide[:, 2:6, 5:37]
    check(case, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores(backend: str, dtype: torch.dtype) -> None:
    case = make_case([1, 4], [100, 50], group=2, dtype=dtype, causal=True)
    case.q *= 1e4
    out, lse = attend(case, fill(case, 16))
    truth, truth_lse = oracle(case, torch.float64)
    # Scores near 1e5 leave float32 about 0.01; softmax is then a choice of one key.
    sure = (lse.double() - truth_lse).abs() < 1e-6 * truth_lse.abs() + 0.05
    assert sure.all()
    assert out.isfinite().all()
    assert (out.double() - truth).abs().median() < 1e-2


def test_nan_query_spoils_itself_alone(backend: str) -> None:
    case = make_case([1, 6], [2000, 60], group=3, dim=64, causal=True)
    cache = fill(case, 16)
    clean, clean_lse = attend(case, cache)
    spoiled = torch.zeros(7, 6, dtype=torch.bool)
    spoiled[0, 1] = spoiled[3, 4] = True
    case.q[spoiled] = torch.nan
    out, lse = attend(case, cache)
    assert torch.equal(out.isnan().all(-1), spoiled)
    assert torch.equal(lse.isnan(), spoiled.T)
    assert torch.equal(out[~spoiled], clean[~spoiled])
    assert torch.equal(lse[~spoiled.T], clean_lse[~spoiled.T])


@pytest.mark.skipif(sys.platform != "linux", reason="guards pages by mprotect of Linux's libc")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [3, 20, 64])
def test_reads_nothing_past_the_end(backend: str, dtype: torch.dtype, dim: int) -> None:
    """A read one element too far would end the process."""
    case = with_turned_queries(make_case([5, 3], [12, 48], group=2, dim=dim, dtype=dtype))
    cache = fill(case, 4)
    last = len(cache.k_pages) - 1  # the page at the edge holds tokens
    full = int(cache.table[1, 11])
    cache.table[1, 11] = last
    cache.k_pages[last], cache.v_pages[last] = cache.k_pages[full], cache.v_pages[full]
    cache.table = cache.table[:, :12].contiguous()
    expected = attend(case, cache)
    for name in ("q", "times_q", "inv_freq"):
        setattr(case, name, at_the_edge(getattr(case, name)))
    for name in ("k_pages", "v_pages", "table", "lengths"):
        setattr(cache, name, at_the_edge(getattr(cache, name)))
    torch.testing.assert_close(attend(case, cache), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 4, 8), (0, 0, 8), (3, 0, 8)])
def test_empty(backend: str, shape: tuple[int, int, int]) -> None:
    case = make_case([shape[0]], [9], dim=8, kv_heads=2)
    case.q = torch.zeros(shape)
    out, lse = attend(case, fill(case, 4))
    assert out.shape == shape
    assert lse.shape == (shape[1], shape[0])


def test_no_requests(backend: str) -> None:
    case = make_case([], [], dim=8)
    out, lse = attend(case, fill(case, 4))
    assert out.shape == (0, 2, 8)
    assert lse.shape == (2, 0)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def arguments() -> dict[str, Any]:
    """Two requests of 7 and 2 tokens in a pool of 5 pages of 4."""
    return {
        "q": torch.randn(3, 4, 6),
        "k_pages": torch.randn(5, 2, 4, 6),
        "v_pages": torch.randn(5, 2, 4, 6),
        "page_table": torch.tensor([[3, 1], [4, -9]], dtype=torch.int32),
        "cu_seqlens_q": int32(0, 2, 3),
        "kv_lengths": int32(7, 2),
        "rotation": (torch.arange(3), torch.ones(2)),
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"q": torch.zeros(3, 4, 6, dtype=torch.float64)}, "q"),
        ({"q": torch.zeros(3, 6)}, "q"),
        ({"q": torch.tensor(1.0)}, "q"),
        (
            {
                "q": torch.zeros(3, 4, 0),
                "k_pages": torch.zeros(5, 2, 4, 0),
                "v_pages": torch.zeros(5, 2, 4, 0),
                "rotation": None,
            },
            "q",
        ),
        ({"q": torch.zeros(3, 5, 6)}, "k_pages"),
        ({"q": torch.zeros(3, 4, 6, dtype=torch.bfloat16)}, "k_pages"),
        ({"k_pages": torch.zeros(5, 2, 4, 7), "v_pages": torch.zeros(5, 2, 4, 7)}, "k_pages"),
        ({"k_pages": torch.zeros(5, 0, 4, 6), "v_pages": torch.zeros(5, 0, 4, 6)}, "k_pages"),
        ({"k_pages": torch.zeros(5, 2, 0, 6), "v_pages": torch.zeros(5, 2, 0, 6)}, "k_pages"),
        ({"v_pages": torch.zeros(4, 2, 4, 6)}, "v_pages"),
        ({"page_table": torch.tensor([[3, -1], [4, 0]], dtype=torch.int32)}, "page_table"),
        ({"page_table": torch.tensor([[3, 5], [4, 0]], dtype=torch.int32)}, "page_table"),
        ({"page_table": torch.tensor([[3, 1], [5, 0]], dtype=torch.int32)}, "page_table"),
        ({"page_table": torch.tensor([[3, 1], [4, 0]])}, "page_table"),
        ({"page_table": torch.zeros(3, 2, dtype=torch.int32)}, "page_table"),
        ({"cu_seqlens_q": int32(0, 2, 4)}, "cu_seqlens_q"),
        ({"cu_seqlens_q": int32(0, 4, 3)}, "cu_seqlens_q"),
        ({"cu_seqlens_q": torch.tensor([0, 2, 3])}, "cu_seqlens_q"),
        ({"kv_lengths": int32(7)}, "kv_lengths"),
        ({"kv_lengths": int32(9, 2)}, "kv_lengths"),
        ({"kv_lengths": int32(7, -1)}, "kv_lengths"),
        ({"kv_lengths": int32(2**31 - 1, 2)}, "kv_lengths"),
        ({"window": (-2, 0)}, "window"),
        ({"rotation": (torch.arange(4), torch.ones(2))}, "rotation times"),
        ({"rotation": (torch.arange(3), torch.ones(4))}, "rotation inv_freq"),
    ],
)
def test_refusal_names_the_argument(backend: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"paged_attention: {named}"):
        ops.paged_attention(**(arguments() | change))


def test_numpy() -> None:
    args = arguments()
    arrays = {
        name: tuple(p.numpy() for p in x) if isinstance(x, tuple) else x.numpy()
        for name, x in args.items()
    }
    for got, wanted in zip(ops.paged_attention(**arrays), ops.paged_attention(**args), strict=True):
        assert torch.equal(torch.from_numpy(got), wanted)


def test_opcheck() -> None:
    args = arguments()
    times, inv_freq = args.pop("rotation")
    torch.library.opcheck(
        torch.ops.afnext.paged_attention.default,
        (*args.values(), times.float(), inv_freq, False, True, -1, -1, 0.4, None, None),
    )
