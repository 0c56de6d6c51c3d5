"""silu_mul: float64, gradients, strides, bad input."""

import pytest
import torch
from torch import Tensor

from afnext import ops
from afnext.ops import reference

# Half a unit in the last place of the output, plus a float32 exponential good to 2 units.
RTOL = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (64, 704), (2, 5, 33), (0, 8), (4, 0)])
def test_matches_float64(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gate, up = torch.randn(shape).mul(4).to(dtype), torch.randn(shape).to(dtype)
    expected = reference.silu_mul(gate.double(), up.double())
    torch.testing.assert_close(
        ops.silu_mul(gate, up).double(), expected, rtol=RTOL[dtype], atol=1e-7
    )


def test_extreme_values(backend: str) -> None:
    gate = torch.tensor([[-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4, float("nan")]])
    out = ops.silu_mul(gate, torch.ones_like(gate))
    torch.testing.assert_close(
        out, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-30, equal_nan=True
    )


def test_strided_rows(backend: str) -> None:
    both = torch.randn(6, 40)
    gate, up = both.chunk(2, dim=-1)
    torch.testing.assert_close(
        ops.silu_mul(gate, up), torch.nn.functional.silu(gate) * up, rtol=1e-6, atol=1e-7
    )


def test_gradients(backend: str) -> None:
    gate, up = (
        torch.randn(2, 3, 9, dtype=torch.float32).requires_grad_(),
        torch.randn(2, 3, 9).requires_grad_(),
    )
    grad = torch.randn(2, 3, 9)
    ours = torch.autograd.grad(ops.silu_mul(gate, up), (gate, up), grad)
    theirs = torch.autograd.grad(torch.nn.functional.silu(gate) * up, (gate, up), grad)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("gate", "up", "named"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64), "gate"),
        (torch.zeros(2, 3), torch.zeros(2, 4), "up"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bfloat16), "up"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), "up"),
    ],
)
def test_bad_input_names_the_argument(backend: str, gate: Tensor, up: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ops.silu_mul(gate, up)


def test_opcheck() -> None:
    gate, up = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.afnext.silu_mul.default, (gate, up))
