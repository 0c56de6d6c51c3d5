"""Rooms, microphones and codecs change how something sounds, not when."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.signal import correlate, fftconvolve

from afnext.training.synthesis import acoustics
from afnext.training.synthesis.acoustics import (
    CODECS,
    clip,
    colour,
    decibel,
    lossy,
    narrow,
    noise,
    room,
)
from afnext.training.synthesis.sounds import SAMPLE_RATE

pytestmark = pytest.mark.slow

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def bursts(seconds: float) -> np.ndarray:
    """Noise between 200 and 3,500 Hz that comes and goes: in telephones too."""
    rng = np.random.default_rng(1)
    n = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    at = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    spectrum[(at < 200) | (at > 3500)] = 0
    wave = np.fft.irfft(spectrum, n)
    return wave / wave.std() * (np.sin(np.arange(n) / SAMPLE_RATE * 9) > 0.2)


def lag(before: np.ndarray, after: np.ndarray) -> int:
    """How many samples later ``after`` is."""
    return int(correlate(after, before, method="fft").argmax()) - (len(before) - 1)


@pytest.fixture(params=[*CODECS], ids=lambda codec: codec[1])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acoustics, "CODECS", (request.param,))


@pytest.mark.parametrize("change", [room, colour, narrow, clip])
def test_nothing_moves(change: Change) -> None:
    """The same length, and the correlation with the original is highest at no delay; yet it is another."""
    wave = bursts(3.13)
    for seed in range(6):
        after = change(wave, np.random.default_rng(seed))
        assert after.shape == wave.shape
        assert np.isfinite(after).all()
        assert lag(wave, after) == 0
        assert np.corrcoef(wave, after)[0, 1] > 0.7
        assert np.abs(after - wave).max() > 0.01


@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize("seconds", [0.5, 3.13, 21.0])
def test_a_codec_moves_nothing(seconds: float) -> None:
    """Neither at the start nor at the end of a long recording: decoders' delays are made up for."""
    wave = bursts(seconds)
    part = SAMPLE_RATE // 2
    for seed in range(3):
        after = lossy(wave, np.random.default_rng(seed))
        assert after.shape == wave.shape
        for piece in (slice(part), slice(len(wave) - part, None)):
            assert abs(lag(wave[piece], after[piece])) <= 1
        assert np.corrcoef(wave, after)[0, 1] > 0.85
        assert np.sqrt(np.mean(np.square(after - wave))) > 1e-3
        assert after.std() == pytest.approx(wave.std(), rel=0.2)


@pytest.mark.usefixtures("codec")
def test_a_codec_is_given_loud_and_silent_recordings() -> None:
    rng = np.random.default_rng(0)
    assert np.abs(lossy(np.zeros(8000), rng)).max() < 1e-3
    loud = lossy(300 * bursts(1.0), rng)
    assert np.abs(loud).max() == pytest.approx(300 * np.abs(bursts(1.0)).max(), rel=0.3)


@pytest.mark.parametrize("change", [room, colour, narrow, clip])
def test_silence_stays_silence(change: Change) -> None:
    assert not change(np.zeros(8000), np.random.default_rng(0)).any()


def test_a_narrow_band_has_no_high_frequencies() -> None:
    wave = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    at = np.fft.rfftfreq(SAMPLE_RATE, 1 / SAMPLE_RATE)
    kept = []
    for seed in range(8):
        power = np.abs(np.fft.rfft(narrow(wave, np.random.default_rng(seed)))) ** 2
        assert power[at > 6100].sum() < 1e-3 * power[at < 3000].sum()
        kept.append(float(at[np.cumsum(power) < 0.999 * power.sum()].max()))
    assert len({round(k, -3) for k in kept}) > 1  # telephones and others


def test_overdriving_keeps_what_is_rare() -> None:
    """One short event in a minute of faint noise is as far above the noise as it was, within 6 dB."""
    rng = np.random.default_rng(0)
    wave = 0.01 * rng.standard_normal(60 * SAMPLE_RATE)
    event = slice(SAMPLE_RATE, SAMPLE_RATE + 4000)
    wave[event] += np.sin(np.arange(4000) * 0.3)
    for seed in range(10):
        after = clip(wave, np.random.default_rng(seed))
        assert after[event].std() > 0.25 * wave[event].std()
        assert np.abs(after - wave)[2 * SAMPLE_RATE :].max() == 0
        share = np.mean(np.abs(after[event]) == np.abs(after).max())
        assert share > 0.2  # of it lies at the limit


def test_noise_has_unit_rms_and_all_slopes() -> None:
    tilts = []
    for seed in range(12):
        wave = noise(SAMPLE_RATE * 4, np.random.default_rng(seed))
        assert wave.std() == pytest.approx(1, abs=1e-6)
        power = np.abs(np.fft.rfft(wave)) ** 2
        low, high = (power[4 * f : 8 * f].sum() for f in (200, 3200))  # an octave each
        tilts.append(round(float(np.log2(high / low)) / 4))  # of power, by octaves of frequency
    assert set(tilts) == {1, 0, -1}  # white has 3 dB more in each octave, brown 3 dB less


def test_a_room_is_an_exponential_tail() -> None:
    """Nothing before a sound, the sound itself as it was, and 60 dB less after 0.6 s at the latest."""
    click = np.zeros(2 * SAMPLE_RATE)
    click[4000] = 1
    lengths = []
    for seed in range(8):
        after = room(click, np.random.default_rng(seed))
        tail = after - click
        energy = np.sum(tail**2)
        assert np.abs(tail[:3999]).max() < 1e-12  # round-off of the transforms
        assert 0.08**2 * 0.99 <= energy <= 0.35**2 * 1.01
        ends = np.flatnonzero(np.abs(tail) > 1e-9)[-1] - 4000
        assert 0.14 * SAMPLE_RATE < ends < 0.6 * SAMPLE_RATE
        lengths.append(ends)
        third = ends // 3
        early, late = (np.sum(tail[4000 + s : 4000 + s + third] ** 2) for s in (0, 2 * third))
        assert 10 * np.log10(early / late) == pytest.approx(40, abs=4)  # two thirds of 60 dB
    assert np.ptp(lengths) > 0.1 * SAMPLE_RATE


@pytest.mark.parametrize(("n", "size"), [(40_000, 2400), (900, 2400), (70_001, 9600)])
def test_blocks_are_a_convolution(n: int, size: int) -> None:
    """Against SciPy."""
    rng = np.random.default_rng(0)
    mix, response = rng.standard_normal(n), rng.standard_normal(size)
    expected = fftconvolve(mix, response)[:n]
    assert np.abs(acoustics._convolve(mix, response) - expected).max() < 1e-9


def test_a_colour_is_a_tilt_around_1_kHz() -> None:
    """Of at most 2 dB an octave, the same everywhere."""
    click = np.zeros(SAMPLE_RATE)
    click[8000] = 1
    slopes = []
    for seed in range(6):
        gain = np.abs(np.fft.rfft(colour(click, np.random.default_rng(seed)), 1 << 14))
        levels = [20 * np.log10(gain[round(f * (1 << 14) / SAMPLE_RATE)]) for f in
                  (250, 500, 1000, 2000, 4000)]  # fmt: skip
        assert levels[2] == pytest.approx(0, abs=0.2)
        steps = np.diff(levels)
        assert np.ptp(steps) < 0.2
        assert np.abs(steps).max() <= 2.1
        slopes.append(steps.mean())
    assert min(slopes) < 0 < max(slopes)


def test_decibels_are_of_amplitude() -> None:
    assert decibel(20) == pytest.approx(10)
    assert decibel(-6.0206) == pytest.approx(0.5, rel=1e-4)
