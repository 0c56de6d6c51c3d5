"""rotate: phases against float64, transformers' rotations, gradients, strides, bad input."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_rotary
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb as qwen2_rotary

from afnext import ops

# One rounding to the output's dtype, and a phase good to 1e-6 rad.
TOLERANCE = {
    torch.float32: {"rtol": 1e-6, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2**-8, "atol": 2e-6},
}
DTYPES = [torch.float32, torch.bfloat16]


def rope_frequencies(half: int, base: float = 15_300_000.0) -> Tensor:
    return base ** (-torch.arange(half) / half)


def unit_pairs(tokens: int, half: int) -> Tensor:
    """Pairs (1, 0): their rotation is (cos, sin) of the phase."""
    return torch.cat([torch.ones(tokens, 1, half), torch.zeros(tokens, 1, half)], dim=-1)


def assert_phases(out: Tensor, phase: np.ndarray) -> None:
    """The phase that turned the pairs is within 1e-6 rad of the float64 one, on the unit circle."""
    cos, sin = out[:, 0].double().numpy().reshape(len(phase), 2, -1).transpose(1, 0, 2)
    off = np.arctan2(
        sin * np.cos(phase) - cos * np.sin(phase), cos * np.cos(phase) + sin * np.sin(phase)
    )
    assert np.abs(off).max() < 1e-6
    assert np.abs(np.hypot(sin, cos) - 1).max() < 1e-6


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("frequency", ["rope", "negative", "huge"])
@pytest.mark.parametrize("whole", [True, False])
def test_phases_match_float64(backend: str, scale: float, frequency: str, whole: bool) -> None:
    times = (torch.rand(200) * 2 - 1) * scale
    times = times.round() if whole else times
    inv_freq = {
        "rope": rope_frequencies(64),
        "negative": -2 * torch.pi * rope_frequencies(37, 1200.0),
        "huge": torch.rand(19) * 100,
    }[frequency]
    phase = times.double().numpy()[:, None] * inv_freq.double().numpy()
    assert_phases(ops.rotate(unit_pairs(200, len(inv_freq)), times, inv_freq), phase)


@pytest.mark.parametrize("scale", [1.0, 5e4, 1e8])
def test_angles_are_used_as_they_are(backend: str, scale: float) -> None:
    angles = torch.randn(100, 21) * scale
    assert_phases(ops.rotate(unit_pairs(100, 21), angles=angles), angles.double().numpy())


@pytest.mark.parametrize("scale", [1e10, 1e12, 1e30])
def test_phases_beyond_all_reason(backend: str, scale: float) -> None:
    """Where a product of float64 has no fraction left, the phase is still that of the product."""
    if backend == "reference":
        pytest.skip("plain torch reduces by a rounded 2 pi")
    times, inv_freq = torch.randn(20) * scale, torch.rand(40) + 0.5
    phase = times.double().numpy()[:, None] * inv_freq.double().numpy()
    assert_phases(ops.rotate(unit_pairs(20, 40), times, inv_freq), phase)


def test_non_finite_times_turn_only_their_own_token(backend: str) -> None:
    times = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    x = torch.randn(4, 2, 12)
    out = ops.rotate(x, times, rope_frequencies(6))
    assert out[1:3].isnan().all()
    assert torch.equal(out[[0, 3]], ops.rotate(x[[0, 3]], times[[0, 3]], rope_frequencies(6)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("tokens", "heads", "width", "half"),
    [(5, 3, 128, 64), (7, 1, 64, 32), (4, 2, 128, 16), (3, 2, 50, 17), (2, 1, 2, 1), (3, 2, 9, 0)],
)
def test_matches_transformers(
    backend: str,
    dtype: torch.dtype,
    interleaved: bool,
    tokens: int,
    heads: int,
    width: int,
    half: int,
) -> None:
    """Half-split pairs as Qwen2 turns them, interleaved ones as GPT-J does, both in float64."""
    x = torch.randn(tokens, heads, width).to(dtype)
    times, inv_freq = torch.rand(tokens) * 1000, rope_frequencies(max(half, 1))[:half]
    angles = times.double()[:, None] * inv_freq.double()
    turned = x[..., : 2 * half].double()
    if interleaved:
        turned = gptj_rotary(turned[None], angles.sin()[None], angles.cos()[None])[0]
    else:
        cos, sin = angles.cos().repeat(1, 2)[None], angles.sin().repeat(1, 2)[None]
        turned = qwen2_rotary(turned[None], turned[None], cos, sin, unsqueeze_dim=2)[0][0]
    expected = torch.cat([turned, x[..., 2 * half :].double()], dim=-1)
    out = ops.rotate(x, times, inv_freq, interleaved=interleaved)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("interleaved", [False, True])
def test_inverse_turns_back(backend: str, interleaved: bool) -> None:
    x, times, inv_freq = torch.randn(6, 2, 40), torch.rand(6) * 1e4, rope_frequencies(18)
    out = ops.rotate(x, times, inv_freq, interleaved=interleaved)
    back = ops.rotate(out, times, inv_freq, interleaved=interleaved, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=2e-6)
    assert (out - x).abs().max() > 0.1


def test_positions_are_times(backend: str) -> None:
    x, inv_freq = torch.randn(6, 20), rope_frequencies(10)
    positions = torch.arange(6)
    expected = ops.rotate(x, positions.float(), inv_freq)
    assert torch.equal(ops.rotate(x, positions, inv_freq), expected)
    assert torch.equal(ops.rotate(x, positions.int(), inv_freq), expected)
    assert torch.equal(ops.rotate(x[:, None], positions, inv_freq)[:, 0], expected)


@pytest.mark.parametrize("interleaved", [False, True])
def test_strided_rows_and_numpy(backend: str, interleaved: bool) -> None:
    """A slice of a fused projection, heads taken every other one."""
    fused = torch.randn(9, 3, 4, 32)
    x, times, inv_freq = fused[:, 1, ::2], torch.rand(9), rope_frequencies(16)
    expected = ops.rotate(x.contiguous(), times, inv_freq, interleaved=interleaved)
    out = ops.rotate(x, times, inv_freq, interleaved=interleaved)
    assert out.is_contiguous()
    assert torch.equal(out, expected)
    array = ops.rotate(x.numpy(), times.numpy(), inv_freq.numpy(), interleaved=interleaved)
    assert isinstance(array, np.ndarray)
    assert torch.equal(torch.from_numpy(array), expected)


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients(backend: str, interleaved: bool) -> None:
    """The gradient turns the other way, also when it comes expanded from a sum."""
    x = torch.randn(4, 2, 24, requires_grad=True)
    angles, weight = torch.randn(4, 10) * 100, torch.randn(4, 2, 24)
    (ours,) = torch.autograd.grad(ops.rotate(x, angles=angles, interleaved=interleaved), x, weight)
    back = ops.rotate(weight, angles=angles, interleaved=interleaved, inverse=True)
    torch.testing.assert_close(ours, back, rtol=0, atol=1e-6)
    (of_sum,) = torch.autograd.grad(ops.rotate(x, angles=angles, interleaved=interleaved).sum(), x)
    turned = ops.rotate(weight, angles=angles, interleaved=interleaved)
    torch.testing.assert_close((of_sum * weight).sum(), turned.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 2, 8), (3, 0, 8)])
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    out = ops.rotate(torch.zeros(shape), torch.zeros(shape[0]), torch.ones(4))
    assert out.shape == shape


X, TIMES, FREQ = torch.zeros(3, 2, 8), torch.zeros(3), torch.zeros(4)


@pytest.mark.parametrize(
    ("x", "arguments", "named"),
    [
        (X.double(), {"times": TIMES, "inv_freq": FREQ}, "x must be float32 or bfloat16"),
        (X[0, 0], {"times": TIMES, "inv_freq": FREQ}, "x must have 3 dimensions"),
        (X, {"times": torch.zeros(4), "inv_freq": FREQ}, "times"),
        (X, {"times": TIMES[:, None], "inv_freq": FREQ}, "times"),
        (X, {"times": TIMES, "inv_freq": FREQ.double()}, "inv_freq"),
        (X, {"times": TIMES, "inv_freq": torch.zeros(5)}, "2 x 5 channels do not fit x"),
        (X, {"times": TIMES}, "give times and inv_freq, or angles"),
        (X, {"inv_freq": FREQ}, "give times and inv_freq, or angles"),
        (X, {}, "give times and inv_freq, or angles"),
        (X, {"angles": torch.zeros(2, 4)}, "angles"),
        (X, {"angles": torch.zeros(3, 4).bfloat16()}, "angles"),
        (X, {"times": TIMES.to("meta"), "inv_freq": FREQ}, "times"),
    ],
)
def test_bad_input_names_the_argument(
    backend: str, x: Tensor, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=f"rotate: {named}"):
        ops.rotate(x, **arguments)


@pytest.mark.parametrize(
    ("x", "times", "named"), [(X.transpose(1, 2), TIMES, "x"), (X, torch.zeros(6)[::2], "times")]
)
def test_kernels_refuse_strides_by_name(backend: str, x: Tensor, times: Tensor, named: str) -> None:
    if backend == "reference":
        pytest.skip("plain torch takes any stride")
    with pytest.raises(ValueError, match=f"rotate: {named} must"):
        ops.rotate(x, times, torch.zeros(1))


@pytest.mark.parametrize("by_angles", [False, True])
def test_opcheck(by_angles: bool) -> None:
    x = torch.randn(3, 2, 16, requires_grad=True)
    turns = (None, None, torch.randn(3, 6)) if by_angles else (torch.rand(3), torch.rand(6), None)
    torch.library.opcheck(torch.ops.afnext.rotate.default, (x, *turns, True, False))
