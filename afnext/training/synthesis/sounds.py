"""Sixteen classes of sound event, each a small random synthesiser.

A synthesiser takes a length in samples and a random generator and returns a float64 waveform whose
audible part fills that length: decays are scaled to it, so that onset and offset are meaningful labels.
:func:`render` fades the edges and normalises to unit RMS.

The methods are textbook ones: additive and modal synthesis, frequency modulation (Chowning 1973),
the plucked string of Karplus and Strong (1983), filtered and gated noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000

Wave = NDArray[np.float64]
Synthesiser = Callable[[int, np.random.Generator], Wave]


def _seconds(n: int) -> Wave:
    return np.arange(n) / SAMPLE_RATE


def _oscillate(frequency: Wave | float, n: int) -> Wave:
    """A sine whose instantaneous frequency in Hz is ``frequency`` (constant or one value a sample)."""
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, (n,))) / SAMPLE_RATE)


def _modes(n: int, modes: list[tuple[float, float, float]]) -> Wave:
    """Modal synthesis: a sum of decaying sines ``(frequency Hz, amplitude, decay rate 1/s)``."""
    t = _seconds(n)
    return np.sum([a * np.sin(2 * np.pi * f * t) * np.exp(-k * t) for f, a, k in modes], axis=0)


def _band_noise(n: int, low: float, high: float, rng: np.random.Generator) -> Wave:
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    spectrum[(frequency < low) | (frequency > high)] = 0
    return np.fft.irfft(spectrum, n)


def _strikes(n: int, period: float, strike: Callable[[], Wave]) -> Wave:
    """Evenly spaced repetitions of a short sound, at least two, that fill the length."""
    count = max(2, round(n / SAMPLE_RATE / period))
    out = np.zeros(n)
    for i in range(count):
        start = i * n // count
        wave = strike()[: n - start]
        out[start : start + len(wave)] += wave
    return out


def bell(n: int, rng: np.random.Generator) -> Wave:
    f, rate = rng.uniform(500, 1100), SAMPLE_RATE / n
    partials = ((1.0, 1.0, 3.0), (2.0, 0.3, 3.0), (2.76, 0.6, 4.0), (5.4, 0.35, 5.0))
    return _modes(n, [(f * m, a, k * rate) for m, a, k in partials])


def siren(n: int, rng: np.random.Generator) -> Wave:
    sweep = np.sin(2 * np.pi * rng.uniform(0.8, 1.6) * _seconds(n) + rng.uniform(0, 6.28))
    wave = _oscillate(rng.uniform(700, 1000) + rng.uniform(250, 400) * sweep, n)
    return wave + 0.3 * wave**3


def beep(n: int, rng: np.random.Generator) -> Wave:
    return _oscillate(rng.uniform(900, 2000), n)


def alarm(n: int, rng: np.random.Generator) -> Wave:
    high = np.floor(_seconds(n) * rng.uniform(8, 14)) % 2
    return np.tanh(3 * _oscillate(rng.uniform(700, 1300) * (1 + 0.35 * high), n))


def whistle(n: int, rng: np.random.Generator) -> Wave:
    return _oscillate(rng.uniform(500, 900) * rng.uniform(3, 5) ** (np.arange(n) / n), n)


def slide(n: int, rng: np.random.Generator) -> Wave:
    return _oscillate(rng.uniform(2000, 3500) * rng.uniform(0.2, 0.33) ** (np.arange(n) / n), n)


def knock(n: int, rng: np.random.Generator) -> Wave:
    f, length = rng.uniform(180, 320), SAMPLE_RATE // 10
    contact = np.exp(-200 * _seconds(length))

    def strike() -> Wave:
        body = _modes(length, [(f, 1.0, 50.0), (2.3 * f, 0.4, 80.0)])
        return body + 0.3 * rng.standard_normal(length) * contact

    return _strikes(n, rng.uniform(0.13, 0.2), strike)


def tick(n: int, rng: np.random.Generator) -> Wave:
    length = SAMPLE_RATE // 80
    decay = np.exp(-np.arange(length) / 40)
    return _strikes(n, 1 / rng.uniform(9, 13), lambda: rng.standard_normal(length) * decay)


def pluck(n: int, rng: np.random.Generator) -> Wave:
    """Karplus-Strong: a burst of noise goes round a delay line through a two-point average.

    One period is computed at a time; the loop gain is set for -35 dB at the end of the sound.
    """
    period = round(SAMPLE_RATE / rng.uniform(150, 400))
    rounds = -(-n // period)
    gain = 10 ** (-35 / 20 / rounds)
    line = rng.uniform(-1, 1, period)
    line -= line.mean()
    out = np.empty((rounds, period))
    for row in out:
        row[:] = line
        line = gain * (0.97 * line + 0.03 * np.roll(line, 1))
    return out.reshape(-1)[:n]


def hiss(n: int, rng: np.random.Generator) -> Wave:
    return _band_noise(n, rng.uniform(2500, 4000), SAMPLE_RATE / 2, rng)


def rumble(n: int, rng: np.random.Generator) -> Wave:
    return _band_noise(n, 30, rng.uniform(180, 300), rng)


def engine(n: int, rng: np.random.Generator) -> Wave:
    t = _seconds(n)
    speed = rng.uniform(55, 110) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * t))
    sawtooth = 2 * (np.cumsum(speed) / SAMPLE_RATE % 1) - 1
    return sawtooth * (0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(14, 24) * t))


def bird(n: int, rng: np.random.Generator) -> Wave:
    phase = _seconds(n) / rng.uniform(0.09, 0.15) % 1
    glide = rng.uniform(3000, 4500) + rng.uniform(800, 2000) * np.sin(2 * np.pi * phase)
    return _oscillate(glide, n) * np.sin(np.pi * np.clip(phase / 0.7, 0, 1))


def drum(n: int, rng: np.random.Generator) -> Wave:
    t, x = _seconds(n), np.arange(n) / n
    head = _oscillate(rng.uniform(60, 90) + rng.uniform(120, 200) * np.exp(-12 * x), n)
    return head * np.exp(-3.5 * x) + 0.3 * rng.standard_normal(n) * np.exp(-60 * t)


def buzz(n: int, rng: np.random.Generator) -> Wave:
    t = _seconds(n)
    square = np.sign(np.sin(2 * np.pi * rng.uniform(140, 280) * t))
    return square * (0.8 + 0.2 * np.sin(2 * np.pi * 50 * t))


def horn(n: int, rng: np.random.Generator) -> Wave:
    t = _seconds(n)
    f = rng.uniform(230, 450) * (1 + 0.006 * np.sin(2 * np.pi * 5.5 * t))
    phase = 2 * np.pi * np.cumsum(f) / SAMPLE_RATE
    return np.sum([np.sin(phase * h) / h**0.7 for h in range(1, 8)], axis=0) * np.clip(
        t / 0.05, 0, 1
    )


SYNTHESISERS: dict[str, Synthesiser] = {
    f.__name__: f
    for f in (
        *(bell, siren, beep, alarm, whistle, slide, knock, tick),
        *(pluck, hiss, rumble, engine, bird, drum, buzz, horn),
    )
}
CLASSES: tuple[str, ...] = tuple(SYNTHESISERS)


def render(name: str, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """One event of class ``name``: ``n`` samples at 16 kHz, unit RMS, 8 ms fades at both ends."""
    wave = SYNTHESISERS[name](n, rng)
    k = min(SAMPLE_RATE * 8 // 1000, n // 2)
    ramp = np.linspace(0, 1, k)
    wave[:k] *= ramp
    wave[n - k :] *= ramp[::-1]
    return (wave / (np.sqrt(np.mean(wave**2)) + 1e-6)).astype(np.float32)
