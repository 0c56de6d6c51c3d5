"""Samples in, features out: the whole recording's to the bit, from blocks of any size, in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from afnext import ops
from afnext.audio import load, stream_features, stream_windows
from afnext.errors import AudioError
from tests.audio.test_memory import PRELUDE
from tests.high_water import grown

RATE = 44_100
STEREO = (np.random.default_rng(0).standard_normal((RATE * 65, 2)) * 3000).astype(np.int16)


def blocks_of(array: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
    """The array in blocks of any size, some of them empty."""
    rng, start = np.random.default_rng(seed), 0
    while start < len(array):
        size = int(rng.choice([0, 1, 37, 4096, 100_000]))
        yield array[start : start + size]
        start += size


def whole(array: np.ndarray, rate: int) -> np.ndarray:
    """What the stream must equal: soxr over everything, then all windows in one call."""
    mono = (array[:, 0].astype(np.float32) + array[:, 1]) / 2 / 2**15
    samples = soxr.resample(mono, rate, 16_000, quality="HQ")
    ends = [*range(0, len(samples), 480_000), len(samples)]
    return ops.log_mel(torch.from_numpy(samples), torch.tensor(ends)).numpy()


def test_a_file_an_array_and_blocks_give_the_whole_to_the_bit(encode) -> None:
    expected = whole(STEREO, RATE)
    sources = {
        "file": (io.BytesIO(encode(STEREO, RATE, "WAV", "PCM_16")), None),
        "array": (STEREO, RATE),
        "blocks": (blocks_of(STEREO), RATE),
    }
    for name, (source, rate) in sources.items():
        pairs = list(stream_features(source, sample_rate=rate))
        assert [w.start_seconds for w, _ in pairs] == [0, 30, 60], name
        assert all(f.shape == (w.num_frames, 128) for w, f in pairs), name
        assert np.array_equal(np.concatenate([f for _, f in pairs]), expected), name


def test_features_come_as_soon_as_their_window_is_full() -> None:
    """Of a source without end no more is asked for than the window needs."""
    asked = 0

    def microphone() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield np.full(16_000, 0.1, np.float32)

    stream = stream_features(microphone(), sample_rate=16_000)
    for count in (30, 60, 90):
        window, features = next(stream)
        assert asked == count
        assert window.start_seconds == count - 30
        assert features.shape == (3000, 128)


def test_blocks_are_recordings_for_load_too() -> None:
    pieces = blocks_of(STEREO[: RATE * 3], seed=1)
    (ours,) = load(pieces, sample_rate=RATE)
    (expected,) = load(STEREO[: RATE * 3], sample_rate=RATE)
    assert np.array_equal(ours.samples, expected.samples)


@pytest.mark.parametrize(
    ("blocks", "rate", "message"),
    [
        ([], RATE, "hold no samples"),
        ([np.zeros(0, np.float32)], RATE, "holds no audio samples"),
        ([np.zeros(10)], None, "sample_rate"),
        ([np.zeros((10, 2)), np.zeros(10)], RATE, "block 1: has 1 channels"),
        ([np.zeros(10), np.zeros((2, 3, 4))], RATE, "block 1: must be an array"),
        ([np.zeros(10), "block"], RATE, "block 1: must be an array"),
        ([np.zeros(10, np.int64)], RATE, "block 0: dtype"),
        ([np.array([0, np.nan])], RATE, "is NaN"),
    ],
)
def test_bad_blocks(blocks: list, rate: int | None, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        list(stream_windows(iter(blocks), sample_rate=rate))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_three_hours_need_no_more_memory_than_half_an_hour() -> None:
    """Resampled blocks of 16 bits. What may grow is the allocator's slack: 2 to 12 MB were seen; the features
    alone are 550 MB."""
    half_an_hour = """
from afnext.audio import stream_features
second = (np.random.default_rng(0).standard_normal(22_050) * 3000).astype(np.int16)
def hear(seconds):
    blocks = (second for _ in range(seconds))
    return sum(len(features) for _, features in stream_features(blocks, sample_rate=22_050))
assert hear(1800) == 180_000
"""
    kilobytes = grown(PRELUDE + half_an_hour, "assert hear(3 * 3600) == 3 * 360_000")
    assert kilobytes < 32 * 1000
