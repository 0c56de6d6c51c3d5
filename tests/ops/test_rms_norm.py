"""rms_norm: float64, transformers, the fused residual, gradients, strides, bad input."""

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from afnext import ops
from afnext.ops import reference

FLOATS = [torch.float32, torch.bfloat16]
# float32: a sum of squares in lanes, a division and a square root. bfloat16: half a unit (2**-8) for
# the norm, which is rounded before it meets the weight, and half a unit for the product.
RTOL = {torch.float32: 2e-6, torch.bfloat16: 2 * 2**-8}
SHAPES = [(1, 1), (3, 17), (64, 704), (2, 5, 33), (0, 8), (4, 0), (7, 3584)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fused", [False, True])
def test_matches_float64(
    backend: str, dtype: torch.dtype, shape: tuple[int, ...], fused: bool
) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    residual = torch.randn(shape).mul(3).to(dtype) if fused else None
    if residual is None:
        out = ops.rms_norm(x, weight, 1e-6)
        total = x
    else:
        out, total = ops.rms_norm(x, weight, 1e-6, residual)
        assert torch.equal(total, x + residual)
    expected, _ = reference.rms_norm(total.double(), weight.double(), 1e-6, None)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=RTOL[dtype], atol=1e-30)


@pytest.mark.parametrize("dtype", FLOATS)
def test_matches_transformers(backend: str, dtype: torch.dtype) -> None:
    theirs = Qwen2RMSNorm(384, eps=1e-5).to(dtype)
    theirs.weight.data.normal_()
    x = torch.randn(50, 384).to(dtype)
    # The order of roundings is theirs; what is left is a tie of the norm that falls the other way.
    torch.testing.assert_close(
        ops.rms_norm(x, theirs.weight.data, 1e-5), theirs(x).detach(), rtol=RTOL[dtype], atol=0
    )


def test_extreme_values(backend: str) -> None:
    weight = torch.ones(40)
    zeros = ops.rms_norm(torch.zeros(2, 40), weight, 1e-6)
    assert torch.equal(zeros, torch.zeros(2, 40))
    x = torch.stack([torch.full((40,), v) for v in (1e-30, 1e-10, 1e10, 1e18, float("nan"))])
    expected, _ = reference.rms_norm(x.double(), weight.double(), 1e-6, None)
    torch.testing.assert_close(
        ops.rms_norm(x, weight, 1e-6).double(), expected, rtol=1e-5, atol=1e-35, equal_nan=True
    )


def test_strided_rows(backend: str) -> None:
    both, weight = torch.randn(6, 80), torch.randn(40)
    x, residual = both.chunk(2, dim=-1)
    expected, _ = reference.rms_norm(x, weight, 1e-6, None)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-6), expected, rtol=2e-6, atol=1e-30)
    out, total = ops.rms_norm(x, weight, 1e-6, residual)
    expected, _ = reference.rms_norm(x + residual, weight, 1e-6, None)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=1e-30)


def test_gradients(backend: str) -> None:
    x, residual = (torch.randn(2, 3, 9, requires_grad=True) for _ in range(2))
    weight = torch.randn(9, requires_grad=True)
    grad, grad_total = torch.randn(2, 3, 9), torch.randn(2, 3, 9)

    def norm(t: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(t, (9,), weight, 1e-5)

    ours = torch.autograd.grad(ops.rms_norm(x, weight, 1e-5), (x, weight), grad)
    theirs = torch.autograd.grad(norm(x), (x, weight), grad)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    inputs = (x, residual, weight)
    ours = torch.autograd.grad(ops.rms_norm(x, weight, 1e-5, residual), inputs, (grad, grad_total))
    theirs = torch.autograd.grad((norm(x + residual), x + residual), inputs, (grad, grad_total))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_of_no_width(backend: str) -> None:
    x, weight = torch.randn(4, 0, requires_grad=True), torch.randn(0, requires_grad=True)
    out, total = ops.rms_norm(x, weight, 1e-6, x)
    for result in (ops.rms_norm(x, weight, 1e-6), out + total):
        grads = torch.autograd.grad(result.sum(), (x, weight))
        assert [tuple(g.shape) for g in grads] == [(4, 0), (0,)]


@pytest.mark.parametrize(
    ("x", "weight", "residual", "named"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3), None, "x"),
        (torch.zeros(2, 3), torch.zeros(4), None, "weight"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.bfloat16), None, "weight"),
        (torch.zeros(2, 3), torch.zeros(3, device="meta"), None, "weight"),
        (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), "residual"),
        (torch.zeros(2, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.bfloat16), "residual"),
    ],
)
def test_bad_input_names_the_argument(
    backend: str, x: Tensor, weight: Tensor, residual: Tensor | None, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        ops.rms_norm(x, weight, 1e-6, residual)


def test_opcheck() -> None:
    x, residual = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    weight = torch.randn(8, requires_grad=True)
    torch.library.opcheck(torch.ops.afnext.rms_norm.default, (x, weight, 1e-6))
    torch.library.opcheck(torch.ops.afnext.add_rms_norm.default, (x, residual, weight, 1e-6))
