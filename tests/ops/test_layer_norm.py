"""layer_norm: float64, torch's own error, pooled rows, gradients, strides, bad input."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afnext import ops
from afnext.ops import reference

FLOATS = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (3, 17), (64, 704), (2, 5, 33), (0, 8), (7, 1280)]


def parameters(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(width).to(dtype), torch.randn(width).to(dtype)


def assert_as_good_as_torch(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """At most twice torch's own error, and a rounding of the largest value where torch was lucky."""
    assert ours.dtype == theirs.dtype
    if exact.numel() == 0:
        return
    floor = torch.finfo(ours.dtype).eps * exact.abs().max()
    error, allowed = (ours.double() - exact).abs().max(), (theirs.double() - exact).abs().max()
    assert error <= 2 * allowed + floor


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).mul(3).add(5).to(dtype)
    weight, bias = parameters(shape[-1], dtype)
    theirs = F.layer_norm(x, shape[-1:], weight, bias, 1e-5)
    exact = F.layer_norm(x.double(), shape[-1:], weight.double(), bias.double(), 1e-5)
    assert_as_good_as_torch(ops.layer_norm(x, weight, bias), theirs, exact)


def test_a_large_mean_does_not_cancel(backend: str) -> None:
    x, (weight, bias) = torch.randn(4, 1000) + 1e4, parameters(1000, torch.float32)
    exact = reference.layer_norm(x.double(), weight.double(), bias.double(), 1e-5, None)
    # Deviations are exact differences; a mean that is rounded at 1e4 would cost a thousandth.
    torch.testing.assert_close(
        ops.layer_norm(x, weight, bias).double(), exact, rtol=2e-6, atol=5e-6
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_pools_rows_first(backend: str, dtype: torch.dtype, pool: int) -> None:
    x, (weight, bias) = torch.randn(40, 83).to(dtype), parameters(83, dtype)
    pooled = torch.randint(40, (11, pool))
    exact = F.layer_norm(x.double()[pooled].mean(1), (83,), weight.double(), bias.double(), 1e-5)
    # One rounding: as good as torch's norm of means that nobody rounded.
    theirs = F.layer_norm(x.float()[pooled].mean(1), (83,), weight.float(), bias.float(), 1e-5).to(
        dtype
    )
    assert_as_good_as_torch(ops.layer_norm(x, weight, bias, 1e-5, pooled), theirs, exact)
    assert ops.layer_norm(x, weight, bias, 1e-5, pooled[:0]).shape == (0, 83)


def test_strided_rows_and_bad_numbers(backend: str) -> None:
    both, (weight, bias) = torch.randn(6, 80), parameters(40, torch.float32)
    x = both[:, :40]
    clean = ops.layer_norm(x.contiguous(), weight, bias)
    assert torch.equal(ops.layer_norm(x, weight, bias), clean)
    both[2, 7], both[4, 0] = float("nan"), float("inf")
    spoilt = ops.layer_norm(x, weight, bias)
    assert spoilt[[2, 4]].isnan().all()
    kept = [0, 1, 3, 5]
    assert torch.equal(spoilt[kept], clean[kept])


@pytest.mark.parametrize("pool", [0, 2])
def test_gradients(backend: str, pool: int) -> None:
    x = torch.randn(6, 9, requires_grad=True)
    weight, bias = (torch.randn(9, requires_grad=True) for _ in range(2))
    pooled = torch.tensor([[0, 1], [1, 5], [3, 3]]) if pool else None
    t = x[pooled].mean(1) if pooled is not None else x
    theirs = F.layer_norm(t, (9,), weight, bias, 1e-5)
    grad = torch.randn_like(theirs)
    ours = ops.layer_norm(x, weight, bias, 1e-5, pooled)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, weight, bias), grad),
        torch.autograd.grad(theirs, (x, weight, bias), grad),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("pool", [0, 2])
def test_gradients_of_no_width(backend: str, pool: int) -> None:
    x = torch.randn(6, 0, requires_grad=True)
    weight, bias = (torch.randn(0, requires_grad=True) for _ in range(2))
    pooled = torch.tensor([[0, 1], [1, 5], [3, 3]]) if pool else None
    out = ops.layer_norm(x, weight, bias, 1e-5, pooled)
    assert out.shape == (3 if pool else 6, 0)
    grads = torch.autograd.grad(out.sum(), (x, weight, bias))
    assert [tuple(g.shape) for g in grads] == [(6, 0), (0,), (0,)]


@pytest.mark.parametrize(
    ("x", "weight", "bias", "pooled", "named"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3), torch.zeros(3), None, "x"),
        (torch.zeros(2, 3), torch.zeros(4), torch.zeros(3), None, "weight"),
        (torch.zeros(2, 3), torch.zeros(3), torch.zeros(2), None, "bias"),
        (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), torch.zeros(2), "pooled"),
        (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), torch.tensor([[0, 2]]), "row 2 of 2"),
        (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), torch.tensor([[-1, 0]]), "row -1 of 2"),
    ],
)
def test_bad_input_names_the_argument(
    backend: str, x: Tensor, weight: Tensor, bias: Tensor, pooled: Tensor | None, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        ops.layer_norm(x, weight, bias, 1e-5, pooled)


def test_numpy() -> None:
    x, (weight, bias) = torch.randn(3, 8), parameters(8, torch.float32)
    out = ops.layer_norm(x.numpy(), weight.numpy(), bias.numpy())
    assert (out == ops.layer_norm(x, weight, bias).numpy()).all()


def test_opcheck() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    weight, bias = (torch.randn(8, requires_grad=True) for _ in range(2))
    for pooled in (None, torch.tensor([[0, 1]])):
        torch.library.opcheck(torch.ops.afnext.layer_norm.default, (x, weight, bias, 1e-5, pooled))
