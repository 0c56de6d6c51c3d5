"""What the synthesisers are built of: oscillators, decaying modes, bands of noise, repetitions.

Textbook methods: additive and modal synthesis, frequency modulation (Chowning 1973), filtered and gated
noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000

Wave = NDArray[np.float64]
Rng = np.random.Generator
Synthesiser = Callable[[int, Rng], Wave]
"""Gives a waveform of so many samples whose audible part fills them."""


def times(n: int) -> Wave:
    """Seconds of ``n`` samples."""
    return np.arange(n) / SAMPLE_RATE


def oscillate(frequency: Wave | float, n: int) -> Wave:
    """A sine whose instantaneous frequency in Hz is ``frequency`` (constant or one value a sample)."""
    return np.sin(phase(frequency, n))


def phase(frequency: Wave | float, n: int) -> Wave:
    """The running phase in radians of an instantaneous frequency in Hz."""
    return 2 * np.pi * np.cumsum(np.broadcast_to(frequency, (n,))) / SAMPLE_RATE


def modulate(carrier: Wave | float, ratio: float, index: Wave | float, n: int) -> Wave:
    """Frequency modulation: a sine of ``carrier`` Hz whose phase another of ``ratio`` times it swings."""
    at = phase(carrier, n)
    return np.sin(at + index * np.sin(ratio * at))


def modes(n: int, partials: list[tuple[float, float, float]]) -> Wave:
    """A sum of decaying sines ``(frequency Hz, amplitude, decay rate 1/s)``."""
    t = times(n)
    return np.sum([a * np.sin(2 * np.pi * f * t) * np.exp(-k * t) for f, a, k in partials], axis=0)


def harmonics(frequency: Wave | float, n: int, count: int, fall: float) -> Wave:
    """``count`` harmonics of falling amplitude ``h ** -fall``, those under half the sample rate."""
    at = phase(frequency, n)
    highest = float(np.max(frequency))
    return np.sum(
        [np.sin(at * h) * h**-fall for h in range(1, count + 1) if h * highest < SAMPLE_RATE / 2],
        axis=0,
    )


def sawtooth(frequency: Wave | float, n: int) -> Wave:
    """Between -1 and 1, with all its aliases: rough on purpose."""
    return 2 * (np.cumsum(np.broadcast_to(frequency, (n,))) / SAMPLE_RATE % 1) - 1


def band_noise(n: int, low: float, high: float, rng: Rng) -> Wave:
    """White noise between two frequencies in Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    spectrum[(frequency < low) | (frequency > high)] = 0
    return np.fft.irfft(spectrum, n)


def resonate(wave: Wave, formants: list[tuple[float, float]]) -> Wave:
    """The spectrum shaped by resonances ``(frequency Hz, width Hz)``."""
    frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    shape = sum(1 / (1 + ((frequency - f) / w) ** 2) for f, w in formants)
    return np.fft.irfft(np.fft.rfft(wave) * shape, len(wave))


def strikes(
    n: int, period: float, strike: Callable[[], Wave], jitter: float = 0.0, rng: Rng | None = None
) -> Wave:
    """Repetitions of a short sound, at least two, that fill the length.

    They are ``period`` seconds apart, moved by up to ``jitter`` of that.
    """
    count = max(2, round(n / SAMPLE_RATE / period))
    out = np.zeros(n)
    for i in range(count):
        start = i * n // count
        if rng is not None and 0 < i < count - 1:
            start += int(rng.uniform(-jitter, jitter) * n / count)
        wave = strike()[: n - start]
        out[start : start + len(wave)] += wave
    return out


def swell(n: int, rise: float = 0.1, fall: float = 0.1) -> Wave:
    """An envelope that rises and falls over those fractions of the length."""
    x = np.arange(n) / n
    return np.minimum(1, np.minimum(x / max(rise, 1e-6), (1 - x) / max(fall, 1e-6)))


def steps(values: list[float], n: int) -> Wave:
    """A staircase through ``values``, each for an equal part of the length."""
    return np.repeat(values, -(-n // len(values)))[:n]
