"""attention, forward: held to float64 on every instruction set and in plain torch.

Also: any mask, raggedness and head count (property test), strides, extremes, NaN, memory bounds,
independence from the number of threads, bad input, registration.
"""

import ctypes
import mmap
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from afnext import ops
from afnext.ops import runtime
from tests.high_water import grown
from tests.ops.attention_oracle import Case, assert_gold, call, make_case, offsets, oracle

DTYPES = [torch.float32, torch.bfloat16]


def check(case: Case, **options: object) -> None:
    dtype = case.q.dtype
    ours, torchs, truth = (
        {"out": out.double(), "lse": lse.double()}
        for out, lse in (
            call(ops.attention, case, **options),
            oracle(case, dtype),
            oracle(case, torch.float64),
        )
    )
    assert_gold(ours, torchs, truth, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "lengths"),
    [(2, 1, 64, [200]), (1, 7, 128, [150, 0, 33]), (2, 2, 96, [1, 129]), (1, 1, 256, [70])],
)
def test_matches_float64(
    backend: str, dtype: torch.dtype, causal: bool, kv_heads: int, group: int, dim: int,
    lengths: list[int],
) -> None:  # fmt: skip
    check(make_case(lengths, kv_heads=kv_heads, group=group, dim=dim, dtype=dtype, causal=causal))


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 17, 31, 40, 72, 100, 255])
def test_any_head_dim(backend: str, dim: int) -> None:
    check(make_case([37, 20], group=3, dim=dim, causal=True, turned=dim > 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_at_a_million(backend: str, dtype: torch.dtype, interleaved: bool) -> None:
    case = make_case([90], group=2, dtype=dtype, turned=True, causal=True)
    case.interleaved = interleaved
    check(case)


def test_rotation_equals_rotate(backend: str) -> None:
    """Turning inside gives what turning outside gives, for integer positions too."""
    q, k, v = torch.randn(3, 50, 2, 64).unbind(0)
    times, inv_freq = torch.arange(50) + 1_000_000, 10_000.0 ** -torch.linspace(0, 1, 32)
    inside = ops.attention(q, k, v, rotation=ops.Rotation(times, times, inv_freq))
    outside = ops.attention(ops.rotate(q, times, inv_freq), ops.rotate(k, times, inv_freq), v)
    torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-6)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(0, 4))
    lengths_q = draw(st.lists(st.integers(0, 80), min_size=count, max_size=count))
    lengths_k = draw(st.lists(st.integers(0, 150), min_size=count, max_size=count))
    lengths_q, lengths_k = [*lengths_q, draw(st.integers(0, 80))], [*lengths_k, 40]
    side = st.integers(-1, 90)
    torch.manual_seed(draw(st.integers(0, 1000)))
    return make_case(
        lengths_q,
        draw(st.sampled_from([lengths_q, lengths_k])),
        kv_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from([1, 2, 7])),
        dim=draw(st.sampled_from([8, 20, 64])),
        dtype=draw(st.sampled_from(DTYPES)),
        turned=draw(st.booleans()),
        causal=draw(st.booleans()),
        window=draw(st.none() | st.tuples(side, side)),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), data=st.data())
def test_any_mask(backend: str, case: Case, data: st.DataObject) -> None:
    """Ragged and empty sequences, Tq != Tk, key lengths, windows, causality, rotation, all at once."""
    if data.draw(st.booleans()):
        case.key_lengths = [data.draw(st.integers(0, n)) for n in case.lengths_k]
    check(case)


def test_one_sequence_needs_no_offsets(backend: str) -> None:
    q, k = torch.randn(11, 2, 8), torch.randn(30, 2, 8)
    expected = ops.attention(
        q, k, k, cu_seqlens_q=offsets([11]), cu_seqlens_k=offsets([30]), causal=True
    )
    for offsets_k in ({}, {"cu_seqlens_k": offsets([30])}):
        torch.testing.assert_close(
            ops.attention(q, k, k, causal=True, **offsets_k), expected, rtol=0, atol=0
        )


def test_partials_are_float32(backend: str) -> None:
    case = make_case([60], dtype=torch.bfloat16)
    out, _ = call(ops.attention, case, out_dtype=torch.float32)
    assert out.dtype == torch.float32
    # Nothing but the inputs was rounded to bf16.
    torch.testing.assert_close(out.double(), oracle(case, torch.float64)[0], rtol=1e-5, atol=1e-6)


def test_scale(backend: str) -> None:
    q, k, v = torch.randn(3, 30, 2, 16).unbind(0)
    out, lse = ops.attention(q, k, v, softmax_scale=0.7)
    expected = ops.attention(q * (0.7 * 4), k, v)
    torch.testing.assert_close((out, lse), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_any_sign_of_the_scale(backend: str, dtype: torch.dtype, scale: float) -> None:
    """Negative scores turned around, and the mean of what is seen; masked keys stay out of both."""
    q, k, v = torch.randn(3, 70, 2, 64).to(dtype).unbind(0)
    got = ops.attention(q, k, v, softmax_scale=scale, causal=True)
    turned = -q if scale < 0 else torch.zeros_like(q)
    wanted = ops.attention(turned, k, v, softmax_scale=abs(scale) or 1.0, causal=True)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_slices_of_a_fused_projection(backend: str) -> None:
    fused = torch.randn(75, 3, 2, 64)
    q, k, v = fused.unbind(1)
    torch.testing.assert_close(
        ops.attention(q, k, v, causal=True),
        ops.attention(q.contiguous(), k.contiguous(), v.contiguous(), causal=True),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores(backend: str, dtype: torch.dtype) -> None:
    """Scores to +-1e4: the softmax is nearly hard, nothing overflows."""
    case = make_case([70], dtype=dtype, causal=True)
    case.q, case.k = case.q * 100, case.k * 100
    check(case)


def test_equal_scores(backend: str) -> None:
    """A long sum of equal weights keeps its precision: the mean of 5,000 values."""
    q, k = torch.zeros(1, 1, 64), torch.zeros(5000, 1, 64)
    v = torch.rand(5000, 1, 64)
    out, lse = ops.attention(q, k, v, cu_seqlens_q=offsets([1]), cu_seqlens_k=offsets([5000]))
    torch.testing.assert_close(out[0, 0].double(), v[:, 0].double().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(lse, torch.tensor([[5000.0]]).log(), rtol=1e-6, atol=0)


def test_nan_stays_in_its_row(backend: str) -> None:
    """A NaN query spoils itself; NaN keys and values that no query may see spoil nothing."""
    case = make_case([40, 60], key_lengths=[30, 60])
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


def test_nan_in_one_sequence(backend: str) -> None:
    case = make_case([40, 60])
    case.k[45], case.v[46] = torch.nan, torch.nan
    out, lse = call(ops.attention, case)
    assert out[:40].isfinite().all()
    assert lse[:, :40].isfinite().all()
    assert out[40:].isnan().all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_no_tokens(backend: str, shape: tuple[int, int]) -> None:
    queries, keys = shape
    q, k = torch.randn(queries, 4, 8), torch.randn(keys, 2, 8)
    out, lse = ops.attention(q, k, k, cu_seqlens_q=offsets([queries]), cu_seqlens_k=offsets([keys]))
    assert torch.equal(out, torch.zeros(queries, 4, 8))
    assert torch.equal(lse, torch.full((4, queries), -torch.inf))


def test_no_sequences(backend: str) -> None:
    empty = torch.zeros(0, 2, 8)
    out, lse = ops.attention(empty, empty, empty, cu_seqlens_q=offsets([]))
    assert out.shape == (0, 2, 8)
    assert lse.shape == (2, 0)


def test_numpy() -> None:
    case = make_case([20], turned=True)
    assert case.times_q is not None
    assert case.inv_freq is not None
    times, inv_freq = case.times_q.numpy(), case.inv_freq.numpy()
    out, _ = ops.attention(
        case.q.numpy(), case.k.numpy(), case.v.numpy(),
        rotation=ops.Rotation(times, times, inv_freq),
    )  # fmt: skip
    case.times_k = case.times_q
    torch.testing.assert_close(
        torch.from_numpy(out), call(ops.attention, case)[0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("isa", runtime.available_cpu_isas())
def test_threads_change_nothing(isa: str) -> None:
    """Neither the number of threads nor the rows that share a work item change a bit."""
    case = make_case([300, 5, 90], group=2, causal=True, window=(70, -1), turned=True)
    isa_before, before = runtime.cpu_isa(), runtime.num_threads()
    runtime.set_cpu_isa(isa)
    try:
        results = []
        for threads in (1, 2, 3, 16):
            runtime.set_num_threads(threads)
            results.append(call(ops.attention, case))
    finally:
        runtime.set_num_threads(before)
        runtime.set_cpu_isa(isa_before)
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(lse, results[0][1])


def at_the_edge(values: Tensor) -> Tensor:
    """A copy of ``values`` whose last byte is the last of a page; the next page may not be read."""
    page = mmap.PAGESIZE
    size = values.numel() * values.element_size()
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + pages * page), page, 0) == 0
    flat = torch.frombuffer(
        memory, dtype=values.dtype, count=values.numel(), offset=pages * page - size
    )
    return flat.view(values.shape).copy_(values)


@pytest.mark.skipif(sys.platform != "linux", reason="guards pages by mprotect of Linux's libc")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [3, 20, 64])
def test_reads_nothing_past_the_end(backend: str, dtype: torch.dtype, dim: int) -> None:
    """A read one element too far would end the process."""
    case = make_case([5, 47], [12, 39], group=2, dim=dim, dtype=dtype, turned=True, causal=True)
    expected = call(ops.attention, case)
    for name in ("q", "k", "v", "times_q", "times_k", "inv_freq"):
        setattr(case, name, at_the_edge(getattr(case, name)))
    torch.testing.assert_close(call(ops.attention, case), expected, rtol=0, atol=0)


WARM = """
import torch
from afnext import ops
q, k, v = torch.randn(3, 20_000, 1, 64).requires_grad_().unbind(0)
ops.attention(q[:64], k[:64], v[:64])[0].sum().backward()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_with_tokens_not_with_their_square() -> None:
    """20,000 tokens forward and backward: 5 MB a tensor, where scores would be 1,600 MB."""
    kilobytes = grown(WARM, "ops.attention(q, k, v, causal=True)[0].sum().backward()")
    assert kilobytes < 150 * 1024


def bad(**changes: object) -> dict[str, object]:
    tensors = torch.zeros(6, 4, 8), torch.zeros(6, 2, 8), torch.zeros(6, 2, 8)
    return {**dict(zip("qkv", tensors, strict=True)), **changes}


def turning(q: int = 6, k: int = 6, half: int = 2) -> ops.Rotation:
    return ops.Rotation(torch.zeros(q), torch.zeros(k), torch.ones(half))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (bad(q=torch.zeros(6, 32)), "q must be"),
        (bad(q=torch.zeros(6, 4, 8, dtype=torch.float64)), "q must be float32 or bfloat16"),
        (bad(k=torch.zeros(6, 2, 8, dtype=torch.bfloat16)), "k must match"),
        (bad(v=torch.zeros(5, 2, 8)), "v must be"),
        (bad(k=torch.zeros(6, 3, 8), v=torch.zeros(6, 3, 8)), "k must be .* dividing 4"),
        (bad(k=torch.zeros(6, 0, 8), v=torch.zeros(6, 0, 8)), "k must be"),
        (bad(k=torch.zeros(6, 2, 9), v=torch.zeros(6, 2, 9)), "k must be"),
        ({n: torch.zeros(2, 1, 257) for n in "qkv"}, "q.* head dim"),
        ({n: torch.zeros(2, 1, 0) for n in "qkv"}, "q.* head dim"),
        (bad(k=torch.zeros(6, 2, 8, device="meta")), "k must be on cpu"),
        (bad(cu_seqlens_q=torch.tensor([0, 6])), "cu_seqlens_q must be int32"),
        (bad(cu_seqlens_q=torch.tensor([1, 6]).int()), "cu_seqlens_q must rise"),
        (bad(cu_seqlens_q=torch.tensor([0, 7]).int()), "cu_seqlens_q must rise"),
        (bad(cu_seqlens_q=torch.tensor([0, 5, 4, 6]).int()), "cu_seqlens_q must rise"),
        (
            bad(cu_seqlens_q=offsets([6]), cu_seqlens_k=torch.tensor([0, 2**30]).int()),
            "cu_seqlens_k must rise",
        ),
        (bad(cu_seqlens_q=offsets([6]), cu_seqlens_k=offsets([3, 3])), "cu_seqlens_k must be"),
        (bad(cu_seqlens_k=offsets([3, 3])), "cu_seqlens_k must be"),
        (bad(key_lengths=torch.tensor([7]).int()), r"key_lengths\[0\] must be 0 to 6"),
        (bad(key_lengths=torch.tensor([-1]).int()), r"key_lengths\[0\] must be 0 to 6"),
        (bad(key_lengths=torch.tensor([6])), "key_lengths must be int32"),
        (bad(key_lengths=torch.tensor([3, 3]).int()), "key_lengths must be"),
        (bad(window=(3, -2)), "window must be"),
        (bad(window=(3,)), "window must be"),
        (bad(out_dtype=torch.float16), "out_dtype must be"),
        (bad(rotation=turning(q=5)), "rotation.times_q must be"),
        (bad(rotation=turning(k=7)), "rotation.times_k must be"),
        (bad(rotation=turning(half=5)), "rotation.inv_freq turns 2 x 5 of 8"),
    ],
)
def test_bad_input_names_the_argument(
    backend: str, arguments: dict[str, Tensor], named: str
) -> None:
    with pytest.raises(ValueError, match=f"attention: .*{named}"):
        ops.attention(**arguments)


def test_stride_of_channels_is_named() -> None:
    q, k, v = torch.zeros(3, 6, 8, 2).transpose(-1, -2).unbind(0)
    with pytest.raises(ValueError, match="q must have unit stride"):
        ops.attention(q, k, v)


def test_opcheck() -> None:
    case = make_case([5, 9], group=2, dim=8, turned=True)
    inputs = (t.requires_grad_() for t in (case.q, case.k, case.v))
    cu = offsets(case.lengths_q)
    torch.library.opcheck(
        torch.ops.afnext.attention.default,
        (*inputs, cu, cu, None, case.times_q, case.times_k, case.inv_freq, False, True, 3, -1, 0.3,
         False),
    )  # fmt: skip
