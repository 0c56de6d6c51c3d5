"""Sounds of things that meet: knocks, drums, steps, glass, drops."""

from __future__ import annotations

import numpy as np

from afnext.training.synthesis.sounds.elements import (
    SAMPLE_RATE,
    Rng,
    Wave,
    band_noise,
    modes,
    oscillate,
    strikes,
    times,
)


def knock_wood(n: int, rng: Rng) -> Wave:
    f, length = rng.uniform(180, 320), SAMPLE_RATE // 10
    contact = np.exp(-200 * times(length))

    def strike() -> Wave:
        body = modes(length, [(f, 1.0, 50.0), (2.3 * f, 0.4, 80.0)])
        return body + 0.3 * rng.standard_normal(length) * contact

    return strikes(n, rng.uniform(0.13, 0.2), strike)


def knock_door(n: int, rng: Rng) -> Wave:
    f, length = rng.uniform(90, 160), SAMPLE_RATE // 6

    def strike() -> Wave:
        panel = [(f, 1.0, 30.0), (1.7 * f, 0.7, 35.0), (3.1 * f, 0.5, 50.0), (5.2 * f, 0.3, 90.0)]
        return modes(length, panel) * rng.uniform(0.7, 1)

    return strikes(n, rng.uniform(0.2, 0.28), strike, 0.15, rng)


def tick_noise(n: int, rng: Rng) -> Wave:
    length = SAMPLE_RATE // 80
    decay = np.exp(-np.arange(length) / 40)
    return strikes(n, 1 / rng.uniform(9, 13), lambda: rng.standard_normal(length) * decay)


def tick_clock(n: int, rng: Rng) -> Wave:
    length, f = SAMPLE_RATE // 50, rng.uniform(2500, 4500)
    sides = iter(range(1_000_000))

    def strike() -> Wave:
        side = 1.0 + 0.2 * (next(sides) % 2)
        return modes(length, [(f * side, 1.0, 300.0), (f * 1.6 * side, 0.6, 400.0)])

    return strikes(n, rng.uniform(0.18, 0.26), strike)


def drum_struck(n: int, rng: Rng) -> Wave:
    t, x = times(n), np.arange(n) / n
    head = oscillate(rng.uniform(60, 90) + rng.uniform(120, 200) * np.exp(-12 * x), n)
    return head * np.exp(-3.5 * x) + 0.3 * rng.standard_normal(n) * np.exp(-60 * t)


def drum_roll(n: int, rng: Rng) -> Wave:
    f, length = rng.uniform(110, 190), SAMPLE_RATE // 8

    def strike() -> Wave:
        rattle = band_noise(length, 800, 5000, rng) * np.exp(-35 * times(length))
        return modes(length, [(f, 1.0, 25.0), (1.59 * f, 0.6, 30.0)]) + 0.4 * rattle

    return strikes(n, rng.uniform(0.07, 0.11), strike, 0.1, rng)


def clap_hands(n: int, rng: Rng) -> Wave:
    length = SAMPLE_RATE // 12

    def strike() -> Wave:
        low = rng.uniform(700, 1100)
        return (
            band_noise(length, low, low * 3, rng)
            * np.exp(-90 * times(length))
            * rng.uniform(0.7, 1)
        )

    return strikes(n, rng.uniform(0.22, 0.32), strike, 0.1, rng)


def clap_audience(n: int, rng: Rng) -> Wave:
    length, out = SAMPLE_RATE // 16, np.zeros(n)
    for start in (0, *rng.integers(0, max(1, n - length), int(45 * n / SAMPLE_RATE))):
        low = rng.uniform(600, 1500)
        size = min(length, n - start)
        burst = band_noise(length, low, low * 2.5, rng) * np.exp(-100 * times(length))
        out[start : start + size] += burst[:size] * rng.uniform(0.3, 1)
    return out


def footsteps_gravel(n: int, rng: Rng) -> Wave:
    length = SAMPLE_RATE // 5

    def strike() -> Wave:
        grains = band_noise(length, 1200, 7000, rng) * (rng.random(length) < 0.12)
        return grains * np.exp(-14 * times(length)) * np.minimum(1, times(length) / 0.02)

    return strikes(n, rng.uniform(0.42, 0.55), strike, 0.06, rng)


def footsteps_floor(n: int, rng: Rng) -> Wave:
    length, f = SAMPLE_RATE // 7, rng.uniform(70, 110)

    def strike() -> Wave:
        heel = modes(length, [(f, 1.0, 45.0), (2.7 * f, 0.3, 60.0)])
        toe = np.roll(band_noise(length, 300, 2500, rng) * np.exp(-70 * times(length)), length // 3)
        return heel + 0.5 * toe * (np.arange(length) > length // 3)

    return strikes(n, rng.uniform(0.42, 0.55), strike, 0.06, rng)


def glass_breaking(n: int, rng: Rng) -> Wave:
    out = rng.standard_normal(n) * np.exp(-30 * times(n)) * 0.8
    for start in (rng.beta(1, 2.2, 30) * n * 0.95).astype(int):
        size = min(n - start, SAMPLE_RATE // 4)
        out[start : start + size] += modes(
            size, [(rng.uniform(2500, 7000), rng.uniform(0.2, 0.7), rng.uniform(25, 60))]
        )
    return out


def glass_clinking(n: int, rng: Rng) -> Wave:
    length = min(n, SAMPLE_RATE // 3)

    def strike() -> Wave:
        f = rng.uniform(2600, 4200)
        return modes(length, [(f, 1.0, 14.0), (2.32 * f if f < 3300 else 0.6 * f, 0.4, 20.0)])

    return strikes(n, rng.uniform(0.22, 0.35), strike, 0.2, rng)


def drip_bubble(n: int, rng: Rng) -> Wave:
    length = SAMPLE_RATE // 9

    def strike() -> Wave:
        t = times(length)
        rising = rng.uniform(500, 900) * (1 + 9 * t)
        return oscillate(rising, length) * np.exp(-32 * t) * np.minimum(1, t / 0.003)

    return strikes(n, rng.uniform(0.25, 0.45), strike, 0.25, rng)


def drip_pouring(n: int, rng: Rng) -> Wave:
    out = 0.15 * band_noise(n, 400, 3000, rng)
    for start in rng.integers(0, max(1, n - SAMPLE_RATE // 20), int(55 * n / SAMPLE_RATE)):
        size = min(n - start, SAMPLE_RATE // 14)
        t = times(size)
        bubble = oscillate(rng.uniform(400, 1300) * (1 + 7 * t), size) * np.exp(-45 * t)
        out[start : start + size] += bubble * rng.uniform(0.3, 1)
    return out
