"""RoTE: ``axial`` bit for bit as transformers computes it, ``time`` against the formula in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.musicflamingo.modeling_musicflamingo import (
    MusicFlamingoRotaryEmbedding,
    apply_rotary_time_emb,
)

from afnext.model import RoteConfig
from afnext.model.rote import RotaryTimeEmbedding

HIDDEN, TOKENS, WINDOWS = 1280, 750, 60


def grid(windows: int = WINDOWS) -> tuple[torch.Tensor, torch.Tensor]:
    """(window start, token index) of full windows."""
    start = torch.arange(windows).repeat_interleave(TOKENS).float() * 30.0
    return start, torch.arange(TOKENS).repeat(windows)


@pytest.fixture(scope="module")
def theirs() -> tuple[Any, torch.Tensor, torch.Tensor]:
    """transformers' module at the release's width, and its cos and sin for 30 minutes."""
    module = MusicFlamingoRotaryEmbedding(transformers.MusicFlamingoConfig())
    # As MusicFlamingoModel._build_audio_timestamps makes them.
    offsets = torch.arange(TOKENS, dtype=torch.float32) * 0.04
    timestamps = torch.arange(WINDOWS).unsqueeze(1) * TOKENS * 0.04 + offsets
    cos, sin = module(timestamps, seq_len=TOKENS)
    return module, cos.flatten(0, 1), sin.flatten(0, 1)


def test_axial_is_bit_equal(theirs: Any) -> None:
    """All 60 windows of half an hour: angles reach 44,000 rad, so only equal roundings agree."""
    rote = RotaryTimeEmbedding(RoteConfig(), HIDDEN, TOKENS)
    angles = rote.axial_angles(*grid()).repeat_interleave(2, dim=-1)
    assert angles.abs().max() > 40_000
    assert torch.equal(angles.cos(), theirs[1])
    assert torch.equal(angles.sin(), theirs[2])


def test_axial_rotation(theirs: Any) -> None:
    rote = RotaryTimeEmbedding(RoteConfig(), HIDDEN, TOKENS)
    start, index = grid()
    some = slice(0, None, 31)  # every window, at most places within it
    start, index, cos, sin = start[some], index[some], theirs[1][some], theirs[2][some]
    x = torch.randn(len(start), HIDDEN, generator=torch.Generator().manual_seed(0))
    expected = apply_rotary_time_emb(x, cos, sin)
    # One rounding of the result and 1 ulp of cos and sin, at |x| up to 5.
    torch.testing.assert_close(rote(x, start, index), expected, atol=2e-6, rtol=0)
    assert (rote(x, torch.zeros_like(start), index) - expected).abs().max() > 1


def test_window_index_of_an_odd_start_is_rounded() -> None:
    """A stream resumed at 59.2 s stands in window 2, at its own absolute time."""
    rote = RotaryTimeEmbedding(RoteConfig(), HIDDEN, TOKENS)
    start, index = torch.full((3,), 59.2), torch.arange(3)
    inv_freq = 1200.0 ** (-np.arange(0, 256, 2) / 256)
    tau = 59.2 + np.arange(3) * 0.04
    window = np.tile(2 / 1200 * inv_freq, (3, 1))
    token = np.arange(3)[:, None] * 2 * np.pi / 1200 * inv_freq
    expected = -2 * np.pi * tau[:, None] * np.concatenate([window, token], axis=1)
    got = rote.axial_angles(start, index).double().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_axial_switches() -> None:
    """An early vLLM port: base 1200 / (2 pi), 2 pi on both axes."""
    config = RoteConfig(theta=1200 / (2 * math.pi), window_factor=2 * math.pi)
    rote = RotaryTimeEmbedding(config, HIDDEN, TOKENS)
    start, index = torch.full((4,), 90.0), torch.arange(4)
    inv_freq = (1200 / (2 * np.pi)) ** (-np.arange(0, 256, 2) / 256)
    tau = 90 + np.arange(4) * 0.04
    window = np.tile(2 * np.pi * 3 / 1200 * inv_freq, (4, 1))
    token = 2 * np.pi * np.arange(4)[:, None] / 1200 * inv_freq
    expected = -2 * np.pi * tau[:, None] * np.concatenate([window, token], axis=1)
    got = rote.axial_angles(start, index).double().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("token_seconds", [0.04, 0.08])
def test_time(token_seconds: float) -> None:
    """-2 pi tau f on one axis, tau the token's own absolute time, in float64 by hand."""
    config = RoteConfig(kind="time", token_seconds=token_seconds)
    rote = RotaryTimeEmbedding(config, HIDDEN, TOKENS)
    start, index = torch.tensor([0.0, 7.5, 30.0, 1770.0]), torch.tensor([0, 3, 10, 749])
    x = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(1))
    tau = start.numpy().astype(np.float64) + index.numpy() * token_seconds
    inv_freq = 1200.0 ** (-np.arange(0, 256, 2) / 256)
    angle = -2 * np.pi * tau[:, None] * inv_freq
    pairs = x[:, :256].double().numpy().reshape(4, 128, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
    expected = x.double().numpy().copy()
    expected[:, :256] = np.stack([turned.real, turned.imag], axis=-1).reshape(4, 256)
    # tau and 2 pi f are rounded to float32: at 1,800 s the phase is off by up to 1e-3 rad.
    np.testing.assert_allclose(rote(x, start, index).numpy(), expected, atol=5e-3)
    np.testing.assert_allclose(rote(x, start, index)[:2].numpy(), expected[:2], atol=3e-5)


def test_time_is_seamless_across_windows() -> None:
    """Where a recording is cut does not matter to ``time``: token 10 of a window cut 0.4 s later is
    token 0.
    """
    rote = RotaryTimeEmbedding(RoteConfig(kind="time"), HIDDEN, TOKENS)
    x = torch.ones(2, HIDDEN)
    out = rote(x, torch.tensor([30.0, 30.4]), torch.tensor([10, 0]))
    torch.testing.assert_close(out[0], out[1], atol=1e-4, rtol=0)


def test_none_and_too_narrow() -> None:
    x = torch.randn(3, 4)
    start, index = torch.zeros(3), torch.arange(3)
    assert torch.equal(RotaryTimeEmbedding(RoteConfig(kind="none"), 4, TOKENS)(x, start, index), x)
    assert torch.equal(RotaryTimeEmbedding(RoteConfig(), 4, TOKENS)(x, start, index), x)


@pytest.mark.parametrize("kind", ["axial", "time"])
def test_bfloat16_does_not_destroy_frequencies(kind: str) -> None:
    """``.to(bfloat16)`` rounds transformers' buffers (first assertion); ours stay exact."""
    broken = MusicFlamingoRotaryEmbedding(transformers.MusicFlamingoConfig())
    exact = broken.inv_freq.clone()
    assert not torch.equal(broken.to(torch.bfloat16).inv_freq.float(), exact)
    rote = RotaryTimeEmbedding(replace(RoteConfig(), kind=kind), HIDDEN, TOKENS)
    start, index = grid(2)
    x = torch.randn(len(start), HIDDEN)
    before = rote(x, start, index)
    for moved in (copy.deepcopy(rote).to(torch.bfloat16), copy.deepcopy(rote).half().float()):
        assert moved.inv_freq.values.dtype == torch.float32
        assert torch.equal(moved(x, start, index), before)
