"""attention, backward, by its kernel for AMX tiles, emulated where there are none: float64 autograd, masks,
the edges of tiles, panels and blocks, one key alone, NaN, memory bounds, threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from afnext import ops
from afnext.ops import runtime
from afnext.ops._compiled import compiled
from tests.ops.attention_oracle import Case, call
from tests.ops.test_attention import at_the_edge
from tests.ops.test_attention_backward import check
from tests.ops.test_attention_tiles import case_of, cases

pytestmark = pytest.mark.skipif(
    "avx512" not in runtime.available_cpu_isas("attention_backward_tiles"), reason="needs AVX-512"
)


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every gradient of attention takes the kernel for tiles; counts them."""
    calls = []

    def count(*args: object) -> None:
        calls.append(1)
        compiled.attention_backward_tiles(*args)

    monkeypatch.setattr(compiled, "attention_backward", count)
    yield calls
    assert calls


def gradients(case: Case, grad_out: Tensor | None = None) -> tuple[Tensor, ...]:
    """Of q, k and v, for random (or these) weights on out."""
    inputs = [t.detach().requires_grad_() for t in (case.q, case.k, case.v)]
    run = Case(**{**vars(case), "q": inputs[0], "k": inputs[1], "v": inputs[2]})
    out, _ = call(ops.attention, run)
    grad_out = torch.randn(out.shape).bfloat16() if grad_out is None else grad_out
    return torch.autograd.grad(out, inputs, grad_out)


# Vectors of 1, 2 and 3 in the last block of rows; blocks without their second; several tiles of keys.
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "lengths"),
    [(2, 1, 64, [100]), (1, 7, 128, [30, 0, 11]), (2, 2, 96, [1, 69]), (1, 1, 256, [50]),
     (1, 1, 32, [300])],
)  # fmt: skip
def test_matches_float64(
    lse: bool, kv_heads: int, group: int, dim: int, lengths: list[int]
) -> None:
    check(case_of(lengths, kv_heads=kv_heads, group=group, dim=dim, causal=True), lse)


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 31, 33, 63, 65, 257, 273])
def test_any_number_of_keys(keys: int) -> None:
    check(case_of([20], [keys], kv_heads=1, group=3, dim=32, turned=True))


@pytest.mark.parametrize("queries", [1, 16, 17, 48, 49, 95, 97, 145, 193])
def test_any_number_of_queries(queries: int) -> None:
    check(case_of([queries], [40], kv_heads=1, dim=32))


def test_more_keys_than_a_tile() -> None:
    """600 keys in several tiles, the first of which few of the 130 queries see."""
    check(case_of([130], [600], kv_heads=1, group=2, dim=32, window=(250, 100)))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_any_mask(case: Case) -> None:
    """Ragged and empty sequences, Tq != Tk, key lengths, windows, causality, rotation, all at once."""
    if not sum(case.lengths_q):
        return
    check(case)


def test_one_key_alone() -> None:
    """Its weight is one whatever its score: slopes cancel exactly, as delta comes out of the same tiles."""
    case = case_of([1, 50, 3], [1, 1, 1], group=3, dim=128)
    grad_q, grad_k, grad_v = gradients(case)
    assert not grad_q.any()
    assert not grad_k.any()
    assert grad_v.any()


def test_one_key_outweighs_the_others() -> None:
    """Slopes that all but cancel, times large keys and queries."""
    case = case_of([70], kv_heads=1)
    case.q, case.k = case.q * 4, case.k * 4
    check(case)


def test_keys_nobody_sees_get_zero() -> None:
    case = case_of([4, 0, 6], [9, 5, 8], key_lengths=[6, 5, 8], causal=True)
    _, *grads = gradients(case)
    for grad in grads:
        assert not grad[6:14].any()
        assert grad[:6].any()


def test_nan_stays_in_its_sequence() -> None:
    """A NaN query spoils the gradients of its sequence and head alone; NaN keys and values that no query
    may see spoil nothing."""
    case = case_of([40, 60, 20], key_lengths=[30, 60, 20])
    grad_out = torch.randn(case.q.shape).bfloat16()
    clean = gradients(case, grad_out)
    case.q[50, 1] = torch.nan
    case.k[30:40], case.v[30:40] = torch.nan, torch.inf
    grads = gradients(case, grad_out)
    assert grads[0][50, 1].isnan().all()
    for got, wanted in zip(grads, clean, strict=True):
        assert torch.equal(got[:40], wanted[:40])
        assert torch.equal(got[100:], wanted[100:])
        assert torch.equal(got[:, 0], wanted[:, 0])


@pytest.mark.parametrize("queries", [1, 40, 110])
def test_nothing_is_left_of_an_earlier_call(queries: int) -> None:
    """Working memory full of NaN; whole steps of a product reach past the rows and keys that there are."""
    case = case_of([queries], [90], kv_heads=1, dim=32, window=(30, 0))
    spoiled = case_of([300], kv_heads=1, dim=32)
    grad_out = torch.randn(case.q.shape).bfloat16()
    clean = gradients(case, grad_out)
    spoiled.q[:] = spoiled.k[:] = spoiled.v[:] = torch.nan
    for _ in range(3):  # in all threads
        gradients(spoiled, torch.full(spoiled.q.shape, torch.nan).bfloat16())
        for got, wanted in zip(gradients(case, grad_out), clean, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("length", [1, 17, 64])
def test_reads_nothing_behind_its_inputs(length: int) -> None:
    case = case_of([length], kv_heads=1, dim=32)
    grad_out = torch.randn(case.q.shape).bfloat16()
    expected = gradients(case, grad_out)
    case.q, case.k, case.v = (at_the_edge(t) for t in (case.q, case.k, case.v))
    for got, wanted in zip(gradients(case, at_the_edge(grad_out)), expected, strict=True):
        assert torch.equal(got, wanted)


def test_threads_change_nothing() -> None:
    """Tiles of keys, wherever they run, add to the queries' gradients in one order."""
    case = case_of([300, 5, 90], kv_heads=1, group=2, dim=32, causal=True, turned=True)
    grad_out = torch.randn(case.q.shape).bfloat16()
    before = runtime.num_threads()
    try:
        results = []
        for threads in (1, 3, 16):
            runtime.set_num_threads(threads)
            results.append(gradients(case, grad_out))
    finally:
        runtime.set_num_threads(before)
    for grads in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0], strict=True))


def test_what_does_not_fit() -> None:
    q = torch.randn(3, 1, 40).bfloat16().requires_grad_()
    with pytest.raises(ValueError, match="a head dim of a multiple of 32 for tiles"):
        ops.attention(q, q, q)[0].sum().backward()
