"""Cutting: windows hold every sample once, know their place, and count tokens as the encoder does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afnext.audio import WINDOW_SAMPLES, AudioWindow, cut_windows, frames_in, tokens_in


@pytest.mark.parametrize("frames", [*range(1, 40), 749, 1500, 2997, 2998, 2999, 3000])
def test_token_count_is_what_strided_layers_give(frames: int) -> None:
    """Against torch's own shapes: convolution k3 s1 p1, convolution k3 s2 p1, average pooling 2."""
    x = torch.zeros(1, 1, frames)
    kernel = torch.zeros(1, 1, 3)
    x = torch.conv1d(torch.conv1d(x, kernel, padding=1), kernel, stride=2, padding=1)
    pooled = torch.avg_pool1d(x, 2, 2).shape[-1] if x.shape[-1] >= 2 else 0
    assert tokens_in(frames) == pooled


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 320, 321, 479_999, 480_000])
def test_frames_are_the_hops_that_hold_a_sample(samples: int) -> None:
    assert frames_in(samples) == int(np.ones(480_000)[:samples].size + 159) // 160
    assert frames_in(samples) == sum(1 for start in range(0, 480_000, 160) if start < samples)


@settings(max_examples=25, deadline=None)
@given(
    total=st.one_of(
        st.integers(0, 3 * WINDOW_SAMPLES),
        st.integers(-400, 400).map(lambda d: 2 * WINDOW_SAMPLES + d),
    ),
    step=st.integers(1000, 700_000),
)
def test_windows_are_the_recording_cut_up(total: int, step: int) -> None:
    """Whatever the chunks, the windows joined are the samples, less a tail of at most 20 ms."""
    audio = np.random.default_rng(total).random(total, dtype=np.float32)
    chunks = (audio[i : i + step] for i in range(0, total, step))
    windows = list(cut_windows(chunks, recording=3))
    joined = np.concatenate([w.samples for w in windows] or [audio[:0]])
    tail = total % WINDOW_SAMPLES
    dropped = tail if total > WINDOW_SAMPLES and tail <= 320 else 0
    np.testing.assert_array_equal(joined, audio[: total - dropped])
    assert [w.start_sample for w in windows] == [i * WINDOW_SAMPLES for i in range(len(windows))]
    assert all(w.valid_samples == len(w.samples) and w.recording == 3 for w in windows)
    assert all(len(w.samples) == WINDOW_SAMPLES for w in windows[:-1])
    assert len(windows) == 1 or all(w.num_tokens > 0 for w in windows)


@pytest.mark.parametrize(
    ("past", "windows", "tokens"),
    [(0, 2, 750), (1, 2, 750), (320, 2, 750), (321, 3, 1), (480, 3, 1)],
)
def test_tail_behind_a_multiple_of_30_s(past: int, windows: int, tokens: int) -> None:
    audio = np.zeros(2 * WINDOW_SAMPLES + past, np.float32)
    cut = list(cut_windows([audio]))
    assert (len(cut), cut[-1].num_tokens) == (windows, tokens)


def test_a_lone_short_window_is_kept() -> None:
    [window] = cut_windows([np.zeros(100, np.float32)])
    assert (window.valid_samples, window.num_tokens) == (100, 0)


def test_windows_own_their_samples() -> None:
    audio = np.zeros(WINDOW_SAMPLES + 1000, np.float32)
    windows = list(cut_windows([audio]))
    audio[:] = 1
    assert not any(w.samples.any() for w in windows)
    assert windows[-1].samples.base is None  # not a view that holds 30 s alive


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros(10, np.float64), 0, 10),
        (np.zeros((1, 10), np.float32), 0, 10),
        (np.zeros(10, np.float32), 0, 11),
        (np.zeros(10, np.float32), 0, -1),
        (np.zeros(10, np.float32), -1, 10),
        (np.zeros(WINDOW_SAMPLES + 1, np.float32), 0, 10),
        (np.zeros(10, np.float32), 0, 10, -1),
    ],
)
def test_impossible_windows_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="AudioWindow"):
        AudioWindow(*arguments)
