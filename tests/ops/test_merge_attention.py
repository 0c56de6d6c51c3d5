"""merge_attention: parts equal the whole, extremes, gradients, bad input."""

import pytest
import torch
from torch import Tensor

from afnext import ops


def parts(
    dtype: torch.dtype = torch.float32, tokens: int = 9, heads: int = 3, dim: int = 20
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out_a, out_b = torch.randn(2, tokens, heads, dim).to(dtype).unbind(0)
    lse_a, lse_b = torch.randn(2, heads, tokens).mul(3).unbind(0)
    return out_a, lse_a, out_b, lse_b


def by_weights(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, in the inputs' arithmetic."""
    lse = torch.logsumexp(torch.stack((lse_a, lse_b)), dim=0)
    wa, wb = ((x - lse).exp().T[..., None] for x in (lse_a, lse_b))
    return wa * out_a + wb * out_b, lse


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("shape", [(9, 3, 20), (1, 1, 1), (40, 4, 128), (0, 2, 8), (3, 0, 8)])
def test_matches_float64(
    backend: str, dtype: torch.dtype, rtol: float, shape: tuple[int, int, int]
) -> None:
    inputs = parts(dtype, *shape)
    expected = by_weights(*(t.double() for t in inputs))
    out, lse = ops.merge_attention(*inputs)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected[0], rtol=rtol, atol=1e-6)
    torch.testing.assert_close(lse.double(), expected[1], rtol=1e-6, atol=1e-6)


def test_halves_make_the_whole(backend: str) -> None:
    q, k, v = torch.randn(3, 50, 2, 64).unbind(0)
    cu_q, cu_k = torch.tensor([0, 50]).int(), torch.tensor([0, 25]).int()
    a, b = (
        ops.attention(q, k[half], v[half], cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
        for half in (slice(25), slice(25, 50))
    )
    torch.testing.assert_close(
        ops.merge_attention(*a, *b), ops.attention(q, k, v), rtol=1e-5, atol=1e-6
    )


def test_empty_sides(backend: str) -> None:
    """-inf on one side gives the other side exactly; on both sides 0 and -inf."""
    out_a, lse_a, out_b, lse_b = parts(tokens=3, heads=1)
    lse_a[0, 0] = lse_a[0, 2] = lse_b[0, 1] = lse_b[0, 2] = -torch.inf
    out_a[0] = out_a[2] = out_b[1] = out_b[2] = 0.0
    out, lse = ops.merge_attention(out_a, lse_a, out_b, lse_b)
    torch.testing.assert_close(out[0], out_b[0], rtol=0, atol=0)
    torch.testing.assert_close(out[1], out_a[1], rtol=0, atol=0)
    assert torch.equal(out[2], torch.zeros(1, 20))
    assert lse[0].tolist() == [lse_b[0, 0].item(), lse_a[0, 1].item(), -torch.inf]


def test_extreme_lse(backend: str) -> None:
    """exp of either would overflow: only their difference counts."""
    out_a, _, out_b, _ = parts(tokens=4, heads=1)
    lse_a = torch.tensor([[1e4, -1e4, 1e4, 3e38]])
    lse_b = torch.tensor([[1e4, -1e4, -1e4, -3e38]])
    out, lse = ops.merge_attention(out_a, lse_a, out_b, lse_b)
    expected = torch.cat([(out_a[:2] + out_b[:2]) / 2, out_a[2:]])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(lse, torch.logaddexp(lse_a, lse_b))


def test_gradients(backend: str) -> None:
    inputs = [t.requires_grad_() for t in parts()]
    truth = [t.detach().double().requires_grad_() for t in inputs]
    grads = torch.randn(9, 3, 20), torch.randn(3, 9)
    ours = torch.autograd.grad(ops.merge_attention(*inputs), inputs, grads)
    theirs = torch.autograd.grad(by_weights(*truth), truth, [g.double() for g in grads])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_gradients_of_empty_rows_are_zero(backend: str) -> None:
    inputs = parts(tokens=2, heads=1)
    inputs[1].fill_(-torch.inf)
    inputs[3].fill_(-torch.inf)
    leaves = [t.requires_grad_() for t in inputs]
    out, lse = ops.merge_attention(*leaves)
    grads = torch.autograd.grad((out, lse), leaves, (torch.ones_like(out), torch.ones_like(lse)))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize(
    ("index", "value", "named"),
    [
        (0, torch.zeros(9, 3, 20, dtype=torch.float64), "out_a"),
        (0, torch.zeros(9, 60), "out_a"),
        (1, torch.zeros(9, 3), "lse_a"),
        (1, torch.zeros(3, 9, dtype=torch.bfloat16), "lse_a"),
        (2, torch.zeros(9, 3, 21), "out_b"),
        (2, torch.zeros(9, 3, 20, dtype=torch.bfloat16), "out_b"),
        (3, torch.zeros(3, 8), "lse_b"),
        (3, torch.zeros(3, 9, device="meta"), "lse_b"),
    ],
)
def test_bad_input_names_the_argument(backend: str, index: int, value: Tensor, named: str) -> None:
    inputs = list(parts())
    inputs[index] = value
    with pytest.raises(ValueError, match=f"merge_attention: {named}"):
        ops.merge_attention(*inputs)


def test_opcheck() -> None:
    torch.library.opcheck(
        torch.ops.afnext.merge_attention.default, tuple(t.requires_grad_() for t in parts())
    )
