"""attention, backward: gradients through out and lse against float64 autograd, and their determinism."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from afnext import ops
from afnext.ops import runtime
from tests.ops.attention_oracle import (
    Case,
    assert_gold,
    call,
    make_case,
    offsets,
    oracle,
    with_gradients,
)
from tests.ops.test_attention import DTYPES, cases


def check(case: Case, lse: bool = True, **options: object) -> None:
    """Our gradients of random weights on out (and lse) beside torch's and the true ones."""
    dtype = case.q.dtype
    grad_out = torch.randn(case.q.shape)
    grad_lse = torch.randn(case.q.shape[1], case.q.shape[0]) * lse
    ours = with_gradients(
        lambda c: call(ops.attention, c, **options), case, grad_out, grad_lse, dtype
    )
    torchs = with_gradients(lambda c: oracle(c, dtype), case, grad_out, grad_lse, dtype)
    truth = with_gradients(
        lambda c: oracle(c, torch.float64), case, grad_out.to(dtype), grad_lse, torch.float64
    )
    assert_gold(ours, torchs, truth, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "lengths"),
    [(2, 1, 64, [300]), (1, 7, 128, [90, 0, 33]), (2, 2, 20, [1, 129])],
)
def test_matches_float64(
    backend: str, dtype: torch.dtype, lse: bool, kv_heads: int, group: int, dim: int,
    lengths: list[int],
) -> None:  # fmt: skip
    case = make_case(lengths, kv_heads=kv_heads, group=group, dim=dim, dtype=dtype, causal=True)
    check(case, lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 5, 17, 100, 255])
def test_any_head_dim(backend: str, dim: int, dtype: torch.dtype) -> None:
    check(make_case([37, 20], group=3, dim=dim, dtype=dtype, causal=True, turned=dim > 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_through_the_rotation(backend: str, dtype: torch.dtype, interleaved: bool) -> None:
    case = make_case([70, 40], group=2, dtype=dtype, turned=True, causal=True)
    case.interleaved = interleaved
    check(case)


def test_partials(backend: str) -> None:
    """bf16 inputs, float32 results: the gradient that arrives is float32 too."""
    check(make_case([60], dtype=torch.bfloat16), out_dtype=torch.float32)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), data=st.data())
def test_any_mask(backend: str, case: Case, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        case.key_lengths = [data.draw(st.integers(0, n)) for n in case.lengths_k]
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_keys_than_a_tile(backend: str, dtype: torch.dtype) -> None:
    """600 keys in several tiles, the first of which few of the 130 queries see."""
    check(make_case([130], [600], kv_heads=1, group=2, dim=32, window=(250, 100), dtype=dtype))


def test_keys_nobody_sees_get_zero(backend: str) -> None:
    case = make_case([4, 0, 6], [9, 5, 8], key_lengths=[6, 5, 8], causal=True)
    inputs = [t.requires_grad_() for t in (case.q, case.k, case.v)]
    out, lse = call(ops.attention, case)
    _, dk, dv = torch.autograd.grad(out.sum() + lse.sum(), inputs)
    for grad in (dk, dv):
        assert torch.equal(grad[6:14], torch.zeros(8, 2, 64))
        assert (grad[:6] != 0).any()


def test_slices_of_a_fused_projection(backend: str) -> None:
    fused = torch.randn(45, 3, 2, 64, requires_grad=True)
    packed = fused.detach().clone().requires_grad_()
    for x, parts in (
        (fused, fused.unbind(1)),
        (packed, [t.contiguous() for t in packed.unbind(1)]),
    ):
        out, _ = ops.attention(*parts, causal=True)
        out.square().sum().backward()
        assert x.grad is not None
    assert fused.grad is not None
    torch.testing.assert_close(fused.grad, packed.grad, rtol=0, atol=0)


def test_expanded_gradient(backend: str) -> None:
    """sum() sends back a gradient with strides of zero."""
    q, k, v = (torch.randn(20, 1, 16, requires_grad=True) for _ in range(3))
    (dv,) = torch.autograd.grad(ops.attention(q, k, v)[0].sum(), v)
    torch.testing.assert_close(dv.sum(), torch.tensor(20.0 * 16), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores(backend: str, dtype: torch.dtype) -> None:
    case = make_case([50], dtype=dtype, causal=True)
    case.q, case.k = case.q * 100, case.k * 100
    ours = with_gradients(
        lambda c: call(ops.attention, c), case, torch.randn(50, 2, 64), torch.randn(2, 50), dtype
    )
    assert all(value.isfinite().all() for value in ours.values())


def test_no_tokens(backend: str) -> None:
    for queries, keys in ((0, 5), (5, 0), (0, 0)):
        inputs = [torch.randn(n, 2, 8, requires_grad=True) for n in (queries, keys, keys)]
        out, lse = ops.attention(
            *inputs, cu_seqlens_q=offsets([queries]), cu_seqlens_k=offsets([keys])
        )
        grads = torch.autograd.grad((out, lse), inputs, (torch.ones_like(out), lse))
        assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(grads, inputs, strict=True))


def test_no_heads(backend: str) -> None:
    """Keys that no head reads have gradients of zero, not of what was in memory."""
    q = torch.randn(5, 0, 8, requires_grad=True)
    k, v = (torch.randn(7, 2, 8, requires_grad=True) for _ in range(2))
    out, lse = ops.attention(q, k, v)
    assert (out.shape, lse.shape) == ((5, 0, 8), (0, 5))
    grads = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), lse))
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(grads, (q, k, v), strict=True))


def test_ring_steps(backend: str) -> None:
    """Halves of the keys, merged, give the gradients of the whole: lse carries its share."""
    q, k, v = (torch.randn(30, 2, 32, requires_grad=True) for _ in range(3))
    cu = offsets([30])
    parts = [
        ops.attention(
            q, k[half], v[half], cu_seqlens_q=cu, cu_seqlens_k=offsets([15]),
        )
        for half in (slice(0, 15), slice(15, 30))
    ]  # fmt: skip
    weights = torch.randn(30, 2, 32)
    merged = torch.autograd.grad(
        (ops.merge_attention(*parts[0], *parts[1])[0] * weights).sum(), (q, k, v)
    )
    whole = torch.autograd.grad((ops.attention(q, k, v)[0] * weights).sum(), (q, k, v))
    torch.testing.assert_close(merged, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", runtime.available_cpu_isas("attention_backward"))
def test_threads_change_nothing(isa: str, dtype: torch.dtype) -> None:
    """Tiles of keys, wherever they run, add to the queries' gradients in one order."""
    case = make_case([700, 5, 90], kv_heads=1, group=2, causal=True, turned=True, dtype=dtype)
    inputs = [t.requires_grad_() for t in (case.q, case.k, case.v)]
    isa_before, before = runtime.cpu_isa(), runtime.num_threads()
    weights = torch.randn(case.q.shape)
    runtime.set_cpu_isa(isa)
    results: list[tuple[Tensor, ...]] = []
    try:
        for threads in (1, 2, 3, 16):
            runtime.set_num_threads(threads)
            out, lse = call(ops.attention, case)
            results.append(torch.autograd.grad((out * weights).sum() + lse.sum(), inputs))
    finally:
        runtime.set_num_threads(before)
        runtime.set_cpu_isa(isa_before)
    for grads in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0], strict=True))


def test_opcheck() -> None:
    case = make_case([5, 9], group=2, dim=8)
    out, lse = call(ops.attention, case)
    cu = offsets(case.lengths_q)
    torch.library.opcheck(
        torch.ops.afnext.attention_backward.default,
        (torch.randn_like(out), None, case.q, case.k, case.v, out, lse, cu, cu, None, None, None,
         None, False, True, -1, -1, 0.3, False),
    )  # fmt: skip
