"""Conversion to 16 kHz: equal to one-shot soxr, and right against the sine that went in."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import soxr

from afnext.audio import SAMPLE_RATE, load
from afnext.audio.resample import downmix, resample

RATES = [1, 7, 800, 8000, 11_025, 15_999, 16_001, 22_050, 44_100, 48_000, 96_000, 192_000, 768_000]


def converted(audio: np.ndarray, rate: int) -> np.ndarray:
    return np.concatenate([w.samples for w in load(audio, sample_rate=rate)])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("block", [997, 16_384])
def test_blocks_equal_one_shot(rate: int, block: int) -> None:
    """Bit for bit: the stream runs the same arithmetic on the same samples."""
    audio = np.random.default_rng(rate).normal(size=max(50, min(rate, 100_003))).astype(np.float32)
    chunks = (audio[i : i + block] for i in range(0, len(audio), block))
    ours = np.concatenate(list(resample(chunks, rate)))
    np.testing.assert_array_equal(ours, soxr.resample(audio, rate, SAMPLE_RATE, quality="HQ"))
    assert len(ours) == int(len(audio) * SAMPLE_RATE / rate + 0.5)


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate >= 8000])
@pytest.mark.parametrize("hertz", [50.0, 1000.0, 3300.0])
def test_sine_keeps_amplitude_and_phase(rate: int, hertz: float, sine) -> None:
    """Least squares on the middle: no delay, no gain, -80 dB of anything else."""
    audio = sine(rate, 1.0, hertz, phase=0.7)[:, 0].astype(np.float32)
    ours = converted(audio, rate)
    times = np.arange(len(ours)) / SAMPLE_RATE
    middle = slice(1600, -1600)
    basis = np.stack([np.sin(2 * np.pi * hertz * times), np.cos(2 * np.pi * hertz * times)], 1)
    weights, *_ = np.linalg.lstsq(basis[middle], ours[middle], rcond=None)
    amplitude, phase = np.hypot(*weights), np.arctan2(weights[1], weights[0])
    assert abs(amplitude - 0.5) < 1e-4
    assert abs(phase - 0.7) < 1e-4
    rest = ours[middle] - basis[middle] @ weights
    assert np.sqrt(2 * np.mean(rest**2)) / 0.5 < 1e-4


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("above", [8400.0, 9300.0, 10_900.0])
def test_what_is_above_8_khz_does_not_fold_back(rate: int, above: float, sine) -> None:
    """A tone beyond the new Nyquist frequency leaves less than -80 dB anywhere."""
    ours = converted(sine(rate, 1.0, above)[:, 0].astype(np.float32), rate)
    assert np.abs(ours[1600:-1600]).max() / 0.5 < 1e-4


@pytest.mark.parametrize("rate", [8000, 11_025])
def test_upsampling_leaves_no_image(rate: int, sine) -> None:
    """Above the old Nyquist frequency the spectrum is below -80 dB of the tone."""
    ours = converted(sine(rate, 2.0, 1000.0)[:, 0].astype(np.float32), rate)
    frequencies, power = scipy.signal.welch(
        ours[3200:-3200], SAMPLE_RATE, window="blackmanharris", nperseg=4096, scaling="spectrum"
    )
    image = power[frequencies > rate / 2 + 100].max()
    assert 10 * np.log10(image / power.max()) < -80


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 9, 64])
def test_channels_are_averaged(channels: int) -> None:
    """Against the float64 mean; float32 adds a rounding per channel."""
    block = np.random.default_rng(channels).normal(size=(500, channels)).astype(np.float32)
    np.testing.assert_allclose(downmix(block), block.mean(1, dtype=np.float64), rtol=0, atol=1e-6)


def test_opposite_channels_cancel(sine) -> None:
    stereo = sine(16_000, 0.1, channels=2) * [1, -1]
    assert not converted(stereo, 16_000).any()
