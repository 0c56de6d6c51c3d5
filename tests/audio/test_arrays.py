"""Arrays as recordings: every dtype at full scale 1.0, every layout, nothing guessed silently."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afnext.audio import load, probe, stream_windows
from afnext.errors import AudioError


def samples_of(source, **options) -> np.ndarray:
    return np.concatenate([w.samples for w in load(source, **{"sample_rate": 16_000, **options})])


AUDIO = (np.random.default_rng(0).random(20_001) * 2 - 1).astype(np.float32)


def test_float32_at_16_khz_passes_through() -> None:
    np.testing.assert_array_equal(samples_of(AUDIO), AUDIO)


@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [
        (np.float64, 1, 0),
        (np.float16, 1, 2**-11),
        (np.int8, 2**7, 2**-7),
        (np.int16, 2**15, 2**-15),
        (np.int32, 2**31, 2**-24),
    ],
)
def test_dtypes_are_scaled_to_full_scale_one(dtype, scale: int, tolerance: float) -> None:
    array = (AUDIO.astype(np.float64) * scale).astype(dtype)
    np.testing.assert_allclose(samples_of(array), AUDIO, rtol=0, atol=tolerance)


def test_uint8_is_offset_binary() -> None:
    np.testing.assert_array_equal(samples_of(np.array([0, 128, 192], np.uint8)), [-1, 0, 0.5])


def test_layouts_and_strides_agree() -> None:
    stereo = np.stack([AUDIO, AUDIO[::-1]])
    expected = stereo.mean(0)
    for array in (
        stereo,
        stereo.T,
        np.asfortranarray(stereo),
        np.repeat(stereo, 2, axis=1)[:, ::2],
        stereo[:, ::-1][:, ::-1],
        stereo.astype(">f4"),
        torch.from_numpy(stereo),
        torch.from_numpy(stereo).T.requires_grad_(),
    ):
        np.testing.assert_allclose(samples_of(array), expected, rtol=0, atol=1e-7)
    reversed_view = AUDIO[::-1]
    np.testing.assert_array_equal(samples_of(reversed_view), AUDIO[::-1])
    np.testing.assert_allclose(
        samples_of(torch.from_numpy(AUDIO).bfloat16()), AUDIO, rtol=2**-8, atol=1e-7
    )


def test_windows_do_not_alias_the_array() -> None:
    array = AUDIO.copy()
    [window] = load(array, sample_rate=16_000)
    array[:] = 0
    np.testing.assert_array_equal(window.samples, AUDIO)


def test_recording_index_and_probe() -> None:
    assert load(AUDIO, sample_rate=16_000, recording=2)[0].recording == 2
    info = probe(AUDIO.reshape(3, -1), sample_rate=44_100)
    assert (info.channels, info.sample_rate, info.format, info.codec) == (
        (3, 44_100, "array", "float32")
    )
    assert info.duration == pytest.approx(6667 / 44_100)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((2, 0), np.float32), "no samples"),
        (np.zeros((5, 5), np.float32), "does not tell channels"),
        (np.zeros((1, 2, 3), np.float32), r"\[1, 2, 3\]"),
        (np.float32(1), r"\[\]"),
        (np.zeros((1500, 2000), np.float32), "1024 channels"),
        (np.zeros(9, np.int64), "int64"),
        (np.zeros(9, np.uint16), "uint16"),
        (np.zeros(9, bool), "bool"),
        (np.zeros(9, np.complex64), "complex64"),
        (np.array([None, 1.0]), "object"),
        (np.array(["a"]), "<U1"),
        ([0.0, 1.0], "list"),
        (None, "NoneType"),
        (3, "int"),
    ],
)
def test_what_is_no_recording_is_refused(array, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load(array, sample_rate=16_000)


@pytest.mark.parametrize("rate", [None, 0, -1, 768_001, 44_100.5, float("nan"), "16000", True])
def test_impossible_rates_are_refused(rate) -> None:
    with pytest.raises(AudioError, match="sample_rate"):
        load(AUDIO, sample_rate=rate)


@pytest.mark.parametrize("rate", [1, 768_000, 16_000.0, np.int32(16_000)])
def test_rates_at_the_limits_work(rate) -> None:
    windows = load(AUDIO[:50], sample_rate=rate)
    assert sum(w.valid_samples for w in windows) == round(50 * 16_000 / rate)


@pytest.mark.parametrize(
    ("value", "what"),
    [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite"), (1e10, "2\\^31")],
)
def test_values_that_are_no_audio_are_named_with_their_time(value: float, what: str) -> None:
    array = np.zeros((2, 96_000), np.float32)
    array[1, 72_000:] = value
    with pytest.raises(AudioError, match=rf"at 1\.5000 s is (beyond )?{what}"):
        load(array, sample_rate=48_000)


def test_float64_beyond_float32_is_infinite_without_a_numpy_warning(recwarn) -> None:
    with pytest.raises(AudioError, match="infinite"):
        load(np.full(100, 1e300), sample_rate=16_000)
    assert not recwarn.list


def test_limit_counts_samples() -> None:
    load(np.zeros(16_000, np.float32), sample_rate=16_000, max_seconds=1)
    over = np.zeros(16_001, np.float32)
    with pytest.raises(AudioError, match="longer"):
        load(over, sample_rate=16_000, max_seconds=1)
    assert len(samples_of(over, max_seconds=1, truncate=True)) == 16_000
    assert len(samples_of(over, max_seconds=float("inf"))) == 16_001


@pytest.mark.parametrize("limit", [0, -1, float("nan"), None, "x"])
def test_impossible_limits_are_refused_at_once(limit) -> None:
    with pytest.raises(AudioError, match="max_seconds"):
        stream_windows(AUDIO, sample_rate=16_000, max_seconds=limit)
    with pytest.raises(AudioError, match="recording"):
        stream_windows(AUDIO, sample_rate=16_000, recording=-1)
