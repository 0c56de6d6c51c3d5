"""linear: float64, every tail of the blocking, strides, threads, gradients, bad input."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops
from afnext.ops import runtime
from afnext.ops._compiled import compiled

FLOATS = [torch.float32, torch.bfloat16]
EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


def assert_as_good_as_torch(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Error against float64 at most twice torch's own, plus a rounding of the output.

    The floor also grants a float32 sum of K products its usual sqrt(K) roundings, for the shapes
    where torch happens to be exact.
    """
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    expected = F.linear(*wide)
    size = F.linear(wide[0].abs(), wide[1].abs(), None if bias is None else wide[2].abs())
    floor = expected.abs() * EPS[out.dtype] + size * 2.0**-24 * max(1, x.shape[-1]) ** 0.5
    theirs = (F.linear(x, weight, bias).double() - expected).abs()
    ours = (out.double() - expected).abs()
    assert ours.shape == expected.shape
    if ours.numel():
        assert (ours <= 2 * theirs.max() + floor).all(), (ours.max(), theirs.max())


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for AMX tiles takes bfloat16, emulated where there are none."""
    usual = compiled.linear

    def either(x: Tensor, *rest: Tensor | None) -> None:
        (compiled.linear_tiles if x.dtype == torch.bfloat16 else usual)(x, *rest)

    monkeypatch.setattr(compiled, "linear", either)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(0, 3, 5), (1, 33, 47), (17, 1, 513), (33, 70, 1100), (300, 95, 600)]
)
def test_tiles(tiles: None, m: int, n: int, k: int) -> None:
    """Whole and broken tiles, panels and chunks; rows of x and of the weight apart."""
    x, bias = torch.randn(m, k + 3).bfloat16()[:, 3:], torch.randn(n).bfloat16()
    weight = torch.randn(n, k + 5).bfloat16()[:, :k]
    assert_as_good_as_torch(ops.linear(x, weight, bias), x, weight, bias)


# Rows that are read in place and rows that are packed, with whole and broken tiles on every level:
# 5, 6 or 14 rows, panels of 32 columns, chunks of 128, 256 or 512.
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 7, 9, 14, 15, 29, 43])
def test_matches_float64(backend: str, dtype: torch.dtype, m: int) -> None:
    for n, k in product((0, 1, 3, 8, 33, 64), (0, 1, 5, 32, 47, 513)):
        x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        bias = torch.randn(n).to(dtype) if (m + n + k) % 2 else None
        assert_as_good_as_torch(ops.linear(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 515, 2600), (6, 70, 5000), (530, 300, 1100)])
def test_large(backend: str, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((m, k), (n, k), (n,)))
    assert_as_good_as_torch(ops.linear(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [3, 40])
def test_strides_and_offsets(backend: str, dtype: torch.dtype, m: int) -> None:
    x = torch.randn(m, 100).to(dtype)[:, 3:40]
    weight = torch.randn(50, 64).to(dtype)[1::2, 5:42]
    bias = torch.randn(60).to(dtype)[7:32]
    assert_as_good_as_torch(ops.linear(x, weight, bias), x, weight, bias)
    turned = torch.randn(4, m, 37).to(dtype).transpose(0, 1)  # no even distance between its rows
    assert_as_good_as_torch(ops.linear(turned, weight, bias), turned, weight, bias)
    same = torch.randn(37).to(dtype).expand(m, 37)
    assert_as_good_as_torch(ops.linear(same, weight, bias), same, weight, bias)


@pytest.mark.parametrize("shape", [(9,), (2, 9), (2, 0, 9), (2, 3, 9), (1, 2, 1, 3, 9)])
def test_leading_dimensions(backend: str, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(4, 9)
    out = ops.linear(x, weight)
    assert out.shape == (*shape[:-1], 4)
    torch.testing.assert_close(out, F.linear(x, weight))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [2, 20])
def test_infinities_and_nan_stay_in_their_rows(backend: str, dtype: torch.dtype, m: int) -> None:
    x, weight = torch.randn(m, 70).to(dtype), torch.randn(33, 70).to(dtype)
    x[0, 3], x[1, 5], weight[32, 69] = float("inf"), float("nan"), float("nan")
    out, expected = ops.linear(x, weight).double(), F.linear(x.double(), weight.double())
    assert torch.equal(out.isfinite(), expected.isfinite())
    if backend != "reference":  # torch's own product makes NaN of infinities on AMX tiles
        assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [1, 8, 100])
def test_threads_change_no_bit(dtype: torch.dtype, m: int) -> None:
    x, weight = torch.randn(m, 700).to(dtype), torch.randn(1500, 700).to(dtype)
    before = runtime.num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            runtime.set_num_threads(threads)
            results.append(ops.linear(x, weight))
    finally:
        runtime.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results[1:])


def test_gradients(backend: str) -> None:
    args = [torch.randn(s, requires_grad=True) for s in ((2, 5, 7), (3, 7), (3,))]
    grad = torch.randn(2, 5, 3)
    ours = torch.autograd.grad(ops.linear(*args), args, grad)
    theirs = torch.autograd.grad(F.linear(*args), args, grad)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 7, 0), (0, 7, 3), (4, 0, 0)])
def test_gradients_of_no_elements(backend: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    args = [torch.randn(s, requires_grad=True) for s in ((2, m, k), (n, k), (n,))]
    grad = torch.randn(2, m, n)
    ours = torch.autograd.grad(ops.linear(*args), args, grad)
    theirs = torch.autograd.grad(F.linear(*args), args, grad)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(2, 5)}, "x"),
        ({"x": torch.zeros(2, 4, dtype=torch.float64)}, "x"),
        ({"x": torch.zeros(2, 4, dtype=torch.bfloat16)}, "weight"),
        ({"weight": torch.zeros(4)}, "weight"),
        ({"weight": torch.zeros(3, 4, dtype=torch.int32)}, "weight"),
        ({"weight": torch.zeros(3, 4, device="meta")}, "weight"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"bias": torch.zeros(3, dtype=torch.bfloat16)}, "bias"),
    ],
)
def test_bad_input_names_the_argument(backend: str, change: dict[str, Tensor], named: str) -> None:
    args = {"x": torch.zeros(2, 4), "weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=f"linear: {named} "):
        ops.linear(**(args | change))


def test_refuses_strides_in_k() -> None:
    with pytest.raises(ValueError, match="linear: x must have unit stride"):
        ops.linear(torch.zeros(4, 2).T, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="linear: weight must have unit stride"):
        ops.linear(torch.zeros(2, 4), torch.zeros(4, 3).T)


def test_opcheck() -> None:
    args = (torch.randn(3, 8), torch.randn(5, 8), torch.randn(5))
    for a in (args, (*args[:2], None)):
        torch.library.opcheck(
            torch.ops.afnext.linear.default,
            tuple(t if t is None else t.requires_grad_() for t in a),
        )
