"""Sounds that are meant to be noticed: bells, sirens, alarms, horns, whistles."""

from __future__ import annotations

import numpy as np

from afnext.training.synthesis.sounds.elements import (
    SAMPLE_RATE,
    Rng,
    Wave,
    harmonics,
    modes,
    modulate,
    oscillate,
    sawtooth,
    steps,
    strikes,
    swell,
    times,
)


def bell_struck(n: int, rng: Rng) -> Wave:
    f, rate = rng.uniform(500, 1100), SAMPLE_RATE / n
    partials = ((1.0, 1.0, 3.0), (2.0, 0.3, 3.0), (2.76, 0.6, 4.0), (5.4, 0.35, 5.0))
    return modes(n, [(f * m, a, k * rate) for m, a, k in partials])


def bell_modulated(n: int, rng: Rng) -> Wave:
    decay = np.exp(-4.0 * np.arange(n) / n)
    return modulate(rng.uniform(350, 800), 1.4, rng.uniform(3, 6) * decay, n) * decay


def bell_hand(n: int, rng: Rng) -> Wave:
    f, length = rng.uniform(1200, 2200), min(n, SAMPLE_RATE // 2)
    partials = [(f, 1.0, 9.0), (f * 2.4, 0.5, 12.0), (f * 3.9, 0.2, 16.0)]
    return strikes(n, rng.uniform(0.25, 0.4), lambda: modes(length, partials))


def siren_wailing(n: int, rng: Rng) -> Wave:
    sweep = np.sin(2 * np.pi * rng.uniform(0.8, 1.6) * times(n) + rng.uniform(0, 6.28))
    wave = oscillate(rng.uniform(700, 1000) + rng.uniform(250, 400) * sweep, n)
    return wave + 0.3 * wave**3


def siren_two_tone(n: int, rng: Rng) -> Wave:
    high = np.floor(times(n) * rng.uniform(1.8, 2.6) + rng.uniform(0, 1)) % 2
    return harmonics(rng.uniform(400, 520) * (1 + 0.33 * high), n, 8, 1.0)


def beep_pure(n: int, rng: Rng) -> Wave:
    return oscillate(rng.uniform(900, 2000), n)


def beep_repeated(n: int, rng: Rng) -> Wave:
    gate = np.sin(2 * np.pi * rng.uniform(2.2, 3.2) * times(n)) > -0.2
    return oscillate(rng.uniform(800, 1800), n) * gate


def alarm_two_tone(n: int, rng: Rng) -> Wave:
    high = np.floor(times(n) * rng.uniform(8, 14)) % 2
    return np.tanh(3 * oscillate(rng.uniform(700, 1300) * (1 + 0.35 * high), n))


def alarm_swept(n: int, rng: Rng) -> Wave:
    sweep = times(n) * rng.uniform(5, 8) % 1
    return np.tanh(3 * oscillate(rng.uniform(600, 900) * (1 + 1.5 * sweep), n))


def buzz_square(n: int, rng: Rng) -> Wave:
    square = np.sign(oscillate(rng.uniform(140, 280), n))
    return square * (0.8 + 0.2 * oscillate(50.0, n))


def buzz_insect(n: int, rng: Rng) -> Wave:
    wander = 1 + 0.08 * oscillate(rng.uniform(1, 3), n) + 0.03 * oscillate(rng.uniform(5, 9), n)
    return sawtooth(rng.uniform(170, 260) * wander, n) * (
        0.7 + 0.3 * oscillate(rng.uniform(3, 6), n)
    )


def horn_car(n: int, rng: Rng) -> Wave:
    f = rng.uniform(330, 450)
    both = harmonics(f, n, 10, 0.5) + harmonics(f * rng.uniform(1.2, 1.27), n, 10, 0.5)
    return both * swell(n, 0.02, 0.02)


def horn_ship(n: int, rng: Rng) -> Wave:
    f = rng.uniform(85, 140) * (1 + 0.004 * oscillate(5.0, n))
    return harmonics(f, n, 20, 0.4) * swell(n, 0.1, 0.05)


def phone_ringing(n: int, rng: Rng) -> Wave:
    f, rate = rng.uniform(1100, 1500), rng.uniform(18, 24)
    length = int(SAMPLE_RATE / rate)
    partials = [(f, 1.0, 20.0), (f * 1.33, 0.9, 20.0), (f * 2.9, 0.3, 30.0)]
    ring = strikes(n, 1 / rate, lambda: modes(2 * length, partials))
    return ring * (np.sin(2 * np.pi * times(n) * rng.uniform(1.0, 1.4) + 1.0) > -0.5)


def phone_mobile(n: int, rng: Rng) -> Wave:
    root = rng.uniform(600, 900)
    tune = [float(root * 2 ** (k / 12)) for k in rng.choice([0, 4, 7, 9, 12, 16], 5)]
    count = max(5, round(n / SAMPLE_RATE / 0.12))
    pattern = (tune * (count // 5 + 1))[:count]
    x = np.arange(n) * count / n % 1
    return harmonics(steps(pattern, n), n, 4, 1.2) * np.minimum(1, (1 - x) * 3)


def whistle_rising(n: int, rng: Rng) -> Wave:
    return oscillate(rng.uniform(500, 900) * rng.uniform(3, 5) ** (np.arange(n) / n), n)


def whistle_referee(n: int, rng: Rng) -> Wave:
    trill = 1 + 0.04 * np.sign(oscillate(rng.uniform(25, 40), n))
    return oscillate(rng.uniform(2300, 3200) * trill, n) + 0.15 * rng.standard_normal(n)


def slide_falling(n: int, rng: Rng) -> Wave:
    return oscillate(rng.uniform(2000, 3500) * rng.uniform(0.2, 0.33) ** (np.arange(n) / n), n)


def slide_laser(n: int, rng: Rng) -> Wave:
    x = np.arange(n) / n
    return modulate(rng.uniform(1800, 3000) * 0.12**x, 0.5, 1.5 * (1 - x), n)
