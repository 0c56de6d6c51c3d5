"""Sounds that go on: hiss, rumble, wind, motors."""

from __future__ import annotations

import numpy as np

from afnext.training.synthesis.sounds.elements import (
    SAMPLE_RATE,
    Rng,
    Wave,
    band_noise,
    oscillate,
    resonate,
    sawtooth,
    strikes,
    swell,
    times,
)


def hiss_steady(n: int, rng: Rng) -> Wave:
    return band_noise(n, rng.uniform(2500, 4000), SAMPLE_RATE / 2, rng)


def hiss_spray(n: int, rng: Rng) -> Wave:
    gusts = 0.6 + 0.4 * np.clip(oscillate(rng.uniform(2, 5), n) * 3, -1, 1)
    return resonate(rng.standard_normal(n), [(rng.uniform(4500, 6500), 1200)]) * gusts


def rumble_deep(n: int, rng: Rng) -> Wave:
    return band_noise(n, 30, rng.uniform(180, 300), rng)


def rumble_thunder(n: int, rng: Rng) -> Wave:
    rolls = np.interp(np.arange(n), np.linspace(0, n, 9), rng.uniform(0.2, 1, 9))
    crack = band_noise(n, 60, 1800, rng) * np.exp(-9 * np.arange(n) / n)
    return (
        band_noise(n, 25, rng.uniform(140, 240), rng) * rolls * swell(n, 0.03, 0.2) + 0.25 * crack
    )


def wind_gusts(n: int, rng: Rng) -> Wave:
    centre = rng.uniform(350, 600)
    gusts = np.interp(np.arange(n), np.linspace(0, n, 6), rng.uniform(0.3, 1, 6))
    low, high = (resonate(rng.standard_normal(n), [(f, 90)]) for f in (centre, centre * 1.9))
    return low * (1 - 0.6 * gusts) + high * gusts


def wind_howling(n: int, rng: Rng) -> Wave:
    bend = np.interp(np.arange(n), np.linspace(0, n, 5), rng.uniform(0.7, 1.4, 5))
    tone = oscillate(rng.uniform(350, 550) * bend, n) * (0.7 + 0.3 * rng.standard_normal(n))
    return tone + 0.5 * band_noise(n, 200, 1200, rng)


def engine_idling(n: int, rng: Rng) -> Wave:
    t = times(n)
    speed = rng.uniform(55, 110) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * t))
    return sawtooth(speed, n) * (0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(14, 24) * t))


def engine_revving(n: int, rng: Rng) -> Wave:
    x = np.arange(n) / n
    speed = rng.uniform(50, 80) * (1 + rng.uniform(0.8, 1.6) * np.sin(np.pi * x) ** 2)
    fire = sawtooth(speed, n) + 0.5 * sawtooth(speed / 2, n)
    return resonate(fire + 0.2 * rng.standard_normal(n), [(150, 120), (700, 300)])


def helicopter_blades(n: int, rng: Rng) -> Wave:
    length = SAMPLE_RATE // 18

    def strike() -> Wave:
        return band_noise(length, 60, 900, rng) * np.exp(-30 * times(length))

    return strikes(n, 1 / rng.uniform(10, 15), strike) + 0.08 * sawtooth(rng.uniform(180, 260), n)


def helicopter_far(n: int, rng: Rng) -> Wave:
    beat = np.maximum(0, oscillate(rng.uniform(11, 16), n)) ** 3
    return band_noise(n, 50, 500, rng) * (0.15 + beat)
