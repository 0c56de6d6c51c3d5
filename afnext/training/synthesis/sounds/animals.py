"""Voices of animals."""

from __future__ import annotations

import numpy as np

from afnext.training.synthesis.sounds.elements import (
    SAMPLE_RATE,
    Rng,
    Wave,
    harmonics,
    oscillate,
    resonate,
    strikes,
    swell,
    times,
)


def bird_trill(n: int, rng: Rng) -> Wave:
    at = times(n) / rng.uniform(0.09, 0.15) % 1
    glide = rng.uniform(3000, 4500) + rng.uniform(800, 2000) * np.sin(2 * np.pi * at)
    return oscillate(glide, n) * np.sin(np.pi * np.clip(at / 0.7, 0, 1))


def bird_song(n: int, rng: Rng) -> Wave:
    def strike() -> Wave:
        size = int(rng.uniform(0.08, 0.16) * SAMPLE_RATE)
        low, high = rng.uniform(2200, 5200, 2)
        return oscillate(np.linspace(low, high, size), size) * swell(size, 0.2, 0.4)

    return strikes(n, rng.uniform(0.18, 0.26), strike, 0.15, rng)


def dog_barking(n: int, rng: Rng) -> Wave:
    pitch, size = rng.uniform(260, 480), int(rng.uniform(0.16, 0.24) * SAMPLE_RATE)

    def strike() -> Wave:
        x = np.arange(size) / size
        voice = harmonics(pitch * (1 + 0.5 * np.sin(np.pi * x)), size, 14, 0.6)
        rough = voice + 0.4 * rng.standard_normal(size)
        return resonate(rough, [(700, 200), (1500, 350)]) * swell(size, 0.1, 0.5)

    return strikes(n, rng.uniform(0.35, 0.5), strike, 0.1, rng)


def dog_small(n: int, rng: Rng) -> Wave:
    pitch, size = rng.uniform(700, 1000), SAMPLE_RATE // 10

    def strike() -> Wave:
        x = np.arange(size) / size
        return harmonics(pitch * (1.3 - 0.5 * x), size, 6, 0.8) * swell(size, 0.05, 0.6)

    return strikes(n, rng.uniform(0.22, 0.3), strike, 0.1, rng)


def cat_meowing(n: int, rng: Rng) -> Wave:
    x = np.arange(n) / n
    pitch = (
        rng.uniform(420, 620) * (1 + 0.45 * np.sin(np.pi * x**0.7)) * (1 + 0.01 * oscillate(6.0, n))
    )
    closed = resonate(harmonics(pitch, n, 12, 0.7), [(900, 200)])
    opened = resonate(harmonics(pitch, n, 12, 0.5), [(1300, 250), (2600, 400)])
    middle = np.sin(np.pi * x) ** 2
    return (closed * (1 - middle) + opened * middle) * swell(n, 0.15, 0.25)


def cat_purring(n: int, rng: Rng) -> Wave:
    pulses = np.maximum(0, oscillate(rng.uniform(23, 29), n)) ** 2
    breath = 0.6 + 0.4 * oscillate(rng.uniform(0.8, 1.3), n)
    return resonate(rng.standard_normal(n), [(250, 120), (600, 250)]) * pulses * breath


def frog_croaking(n: int, rng: Rng) -> Wave:
    rate, f = rng.uniform(28, 40), rng.uniform(500, 900)
    size = int(SAMPLE_RATE / rate)
    pulse = oscillate(f, size) * np.exp(-80 * times(size))
    croak = strikes(n, 1 / rate, lambda: pulse)
    calls = np.sin(2 * np.pi * times(n) * rng.uniform(1.6, 2.4)) > -0.3
    return croak * calls


def frog_peeping(n: int, rng: Rng) -> Wave:
    size, f = int(rng.uniform(0.07, 0.1) * SAMPLE_RATE), rng.uniform(1300, 1700)

    def strike() -> Wave:
        return oscillate(np.linspace(f, f * 1.25, size), size) * swell(size, 0.3, 0.3)

    return strikes(n, rng.uniform(0.2, 0.28), strike)


def cricket_chirping(n: int, rng: Rng) -> Wave:
    gate = (times(n) * rng.uniform(2.4, 3.4) % 1 < 0.55) * np.maximum(
        0, oscillate(rng.uniform(38, 50), n)
    )
    return oscillate(rng.uniform(4200, 5200), n) * gate


def cricket_cicada(n: int, rng: Rng) -> Wave:
    pulses = np.maximum(0, oscillate(rng.uniform(90, 130), n))
    return (
        resonate(rng.standard_normal(n), [(rng.uniform(5000, 6300), 350)])
        * pulses
        * swell(n, 0.2, 0.2)
    )
