"""Packing: what belongs where, and refusal of what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afnext.audio.windows import AudioWindow, tokens_in
from afnext.model import AudioBatch
from afnext.model.audio_batch import frames_needed


def window(samples: int, start: int = 0, recording: int = 0) -> AudioWindow:
    noise = np.random.default_rng(samples + start).standard_normal(samples).astype(np.float32)
    return AudioWindow(noise, start, samples, recording)


def test_layout(their_features: Any) -> None:
    """Rows without audio, with one recording, with several; features are transformers'."""
    rows = [
        [],
        [window(480_000), window(16_000, 480_000)],
        [window(8_000, 0, 0), window(24_003, 0, 1)],
    ]
    batch = AudioBatch.collate(rows)
    assert batch.row_tokens == (0, 750 + 25, 12 + 38)
    assert batch.rows == (1, 1, 2, 2)
    assert batch.starts == (0.0, 30.0, 0.0, 0.0)
    assert batch.frames == (3000, 100, 50, 151)
    assert batch.cu_frames.tolist() == [0, 3000, 3102, 3154, 3307]
    assert batch.num_tokens == sum(batch.tokens) == 825
    windows = [w for row in rows for w in row]
    expected = their_features(windows)["input_features"].transpose(1, 2)
    for i, n in enumerate(batch.frames):
        got = batch.features[batch.cu_frames[i] : batch.cu_frames[i + 1]]
        assert got.shape[0] == frames_needed(n)
        torch.testing.assert_close(got, expected[i, : frames_needed(n)], atol=1e-4, rtol=0)


def test_windows_of_at_most_20_ms_hold_nothing() -> None:
    rows = [[window(320)], [window(480_000), window(160, 480_000)], [window(321)]]
    batch = AudioBatch.collate(rows)
    assert batch.row_tokens == (0, 750, 1)
    assert batch.rows == (1, 2)
    empty = AudioBatch.collate([[window(1)], []])
    assert empty.num_tokens == 0
    assert empty.plans == ()
    assert empty.row_tokens == (0, 0)


def test_samples_past_the_valid_ones_are_not_audio() -> None:
    plain = window(16_000)
    padded = AudioWindow(np.append(plain.samples, np.ones(999, np.float32)), 0, 16_000)
    assert torch.equal(
        AudioBatch.collate([[plain]]).features, AudioBatch.collate([[padded]]).features
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 3000), min_size=1, max_size=12), st.integers(1, 4))
def test_plans_cover_everything_once(frames: list[int], max_windows: int) -> None:
    """Pieces tile the features; every index stays within its window or means a row of zeros."""
    features = torch.zeros(sum(map(frames_needed, frames)), 128)
    rows = [0] * len(frames)
    batch = AudioBatch.pack(features, frames, [0.0] * len(frames), rows, 1, max_windows=max_windows)
    covered = [i for plan in batch.plans for i in range(plan.frames.start, plan.frames.stop)]
    assert covered == list(range(len(features)))
    for plan in batch.plans:
        inputs = plan.frames.stop - plan.frames.start
        assert inputs <= max(3000 * max_windows, 3000)
        assert int(plan.conv1.max()) <= inputs
        assert int(plan.conv2.max()) <= len(plan.conv1)
        assert len(plan.conv2) == len(plan.positions) == sum(plan.lengths)
        assert plan.cu_seqlens.tolist()[-1] == sum(plan.lengths)
        assert int(plan.pooled.max()) < len(plan.positions)
        assert len(plan.pooled) == len(plan.window_start) == len(plan.token_index)
    assert sum(len(p.pooled) for p in batch.plans) == sum(map(tokens_in, frames))


def test_to() -> None:
    batch = AudioBatch.collate([[window(16_000)]])
    moved = batch.to("meta", torch.bfloat16)
    assert moved.features.dtype == torch.bfloat16
    assert moved.features.device.type == moved.plans[0].conv1.device.type == "meta"
    assert moved.plans[0].window_start.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": torch.zeros(10, 128)}, "features"),
        ({"frames": [2]}, "frames"),
        ({"frames": [3001]}, "frames"),
        ({"rows": [1]}, "rows"),
        ({"rows": [0, 0]}, "rows"),
        ({"starts": []}, "starts"),
    ],
)
def test_refusals(change: dict[str, Any], named: str) -> None:
    good: dict[str, Any] = {
        "features": torch.zeros(102, 128),
        "frames": [100],
        "starts": [0.0],
        "rows": [0],
        "batch": 1,
    }
    AudioBatch.pack(**good)
    with pytest.raises(ValueError, match=named):
        AudioBatch.pack(**{**good, **change})
