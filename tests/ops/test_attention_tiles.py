"""attention by its kernel for AMX tiles, emulated where there are none: float64, every mask, the edges of
tiles and panels, NaN, memory bounds, threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afnext import ops
from afnext.ops import runtime
from afnext.ops._compiled import compiled
from tests.ops.attention_oracle import Case, call, make_case
from tests.ops.test_attention import at_the_edge, check

pytestmark = pytest.mark.skipif(
    "avx512" not in runtime.available_cpu_isas("attention_tiles"), reason="needs AVX-512"
)


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every call of attention takes the kernel for tiles; counts them."""
    calls = []

    def count(*args: object) -> None:
        calls.append(1)
        compiled.attention_tiles(*args)

    monkeypatch.setattr(compiled, "attention", count)
    yield calls
    assert calls


def case_of(lengths: list[int], *args: object, **options: object) -> Case:
    return make_case(lengths, *args, dtype=torch.bfloat16, **options)  # type: ignore[arg-type]


# Vectors of 1, 2 and 3 in the last block of rows; keys in whole and broken tiles and panels of 256.
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "lengths"),
    [(2, 1, 64, [200]), (1, 7, 128, [100, 0, 23]), (2, 2, 96, [1, 69]), (1, 1, 256, [50]),
     (1, 1, 32, [300])],
)  # fmt: skip
def test_matches_float64(
    causal: bool, kv_heads: int, group: int, dim: int, lengths: list[int]
) -> None:
    check(case_of(lengths, kv_heads=kv_heads, group=group, dim=dim, causal=causal))


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 31, 33, 255, 256, 257, 273, 530])
def test_any_number_of_keys(keys: int) -> None:
    check(case_of([20], [keys], group=3, dim=32, turned=True))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 3))
    lengths_q = draw(st.lists(st.integers(0, 60), min_size=count, max_size=count))
    lengths_k = draw(st.lists(st.integers(0, 300), min_size=count, max_size=count))
    side = st.integers(-1, 90)
    torch.manual_seed(draw(st.integers(0, 1000)))
    case = case_of(
        lengths_q,
        lengths_k,
        kv_heads=1,
        group=draw(st.sampled_from([1, 2, 7])),
        dim=draw(st.sampled_from([32, 64])),
        turned=draw(st.booleans()),
        causal=draw(st.booleans()),
        window=draw(st.none() | st.tuples(side, side)),
    )
    if draw(st.booleans()):
        case.key_lengths = [draw(st.integers(0, n)) for n in case.lengths_k]
    return case


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_any_mask(case: Case) -> None:
    """Ragged and empty sequences, Tq != Tk, key lengths, windows, causality, rotation, all at once."""
    if not sum(case.lengths_q):
        return
    check(case)


def test_extreme_scores() -> None:
    """Scores to +-1e4: peaks rise from panel to panel, nothing overflows."""
    case = case_of([300], kv_heads=1, causal=True)
    case.q, case.k = case.q * 100, case.k * 100
    check(case)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_any_sign_of_the_scale(scale: float) -> None:
    q, k, v = torch.randn(3, 70, 1, 64).bfloat16().unbind(0)
    got = ops.attention(q, k, v, softmax_scale=scale, causal=True)
    turned = -q if scale < 0 else torch.zeros_like(q)
    wanted = ops.attention(turned, k, v, softmax_scale=abs(scale) or 1.0, causal=True)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_nan_stays_in_its_row() -> None:
    """A NaN query spoils itself; NaN keys and values that no query may see spoil nothing."""
    case = case_of([40, 60], key_lengths=[30, 60])
    clean, clean_lse = call(ops.attention, case)
    case.q[7, 1] = torch.nan
    case.k[30:40], case.v[30:40] = torch.nan, torch.inf
    out, lse = call(ops.attention, case)
    spoiled = torch.zeros(100, 2, dtype=torch.bool)
    spoiled[7, 1] = True
    assert torch.equal(out.isnan().all(-1), spoiled)
    assert torch.equal(lse.isnan(), spoiled.T)
    assert torch.equal(out[~spoiled], clean[~spoiled])
    assert torch.equal(lse[~spoiled.T], clean_lse[~spoiled.T])


@pytest.mark.parametrize("length", [1, 17, 64])
def test_reads_nothing_behind_its_inputs(length: int) -> None:
    case = case_of([length], kv_heads=1, dim=32)
    expected = call(ops.attention, case)
    case.q, case.k, case.v = (at_the_edge(t) for t in (case.q, case.k, case.v))
    for got, wanted in zip(call(ops.attention, case), expected, strict=True):
        assert torch.equal(got, wanted)


def test_threads_change_nothing() -> None:
    """Neither the number of threads nor the rows that share a work item change a bit."""
    case = case_of([150, 5, 90], group=2, causal=True, window=(70, -1), turned=True)
    before = runtime.num_threads()
    try:
        results = []
        for threads in (1, 3, 16):
            runtime.set_num_threads(threads)
            results.append(call(ops.attention, case))
    finally:
        runtime.set_num_threads(before)
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(lse, results[0][1])


def test_what_does_not_fit() -> None:
    q = torch.randn(3, 1, 40).bfloat16()
    with pytest.raises(ValueError, match="a head dim of a multiple of 32 for tiles"):
        ops.attention(q, q, q)
