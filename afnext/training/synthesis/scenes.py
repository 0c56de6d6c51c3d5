"""Scenes: events of known class and time, mixed over noise, with gain, tone colour and reverberation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afnext.training.synthesis.sounds import CLASSES, SAMPLE_RATE, render

ONSET_GAP = 0.2
"""Least distance between two onsets, in seconds: closer ones have no audible order."""
REPEAT_GAP = 0.3
"""Least silence between two events of one class, in seconds: closer ones sound as one."""


@dataclass(frozen=True, slots=True)
class Event:
    """A sound with its true times in seconds from the start of the clip."""

    label: str
    onset: float
    offset: float


@dataclass(frozen=True, slots=True)
class Scene:
    """``samples`` float32 [S] mono 16 kHz in [-1, 1]; ``events`` ordered by onset."""

    samples: NDArray[np.float32]
    events: tuple[Event, ...]


def _decibel(value: float) -> float:
    return 10.0 ** (value / 20)


def most_events(seconds: float) -> int:
    """The largest number of events that a clip of this length is given."""
    if seconds <= 10:
        return max(1, min(6, round(0.7 * seconds)))
    return 8 if seconds <= 30 else 10


def place(seconds: float, rng: np.random.Generator) -> list[Event]:
    """Draw events that obey the gaps above; each may overlap one earlier event. 5 % of clips have none."""
    if rng.random() < 0.05:
        return []
    wanted = int(rng.integers(1, most_events(seconds) + 1))
    events: list[Event] = []
    for _ in range(40 + 10 * wanted):
        if len(events) == wanted:
            break
        length = rng.uniform(0.4, min(2.2, seconds / 2))
        onset = rng.uniform(0, seconds - length - 0.05)
        event = Event(CLASSES[rng.integers(len(CLASSES))], onset, onset + length)
        overlaps = [min(e.offset, event.offset) - max(e.onset, onset) for e in events]
        if (
            any(abs(e.onset - onset) < ONSET_GAP for e in events)
            or sum(o > 0 for o in overlaps) > 1
        ):
            continue
        near = (o > -REPEAT_GAP for o in overlaps)
        if any(e.label == event.label and n for e, n in zip(events, near, strict=True)):
            continue
        events.append(event)
    return sorted(events, key=lambda e: e.onset)


def _noise(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Unit-RMS noise with a spectrum from white (slope 0) to brown (slope 2 in power)."""
    slope = rng.choice([0.0, 1.0, 2.0])
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 40.0)
    noise = np.fft.irfft(spectrum * frequency ** (-slope / 2), n)
    return noise / (noise.std() + 1e-12)


def _room(mix: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Add a little reverberation: an exponential tail of noise, -60 dB after 0.15 to 0.4 s."""
    tail = int(rng.uniform(15, 40)) * SAMPLE_RATE // 100
    response = rng.standard_normal(tail) * _decibel(-60.0) ** (np.arange(tail) / tail)
    response /= np.sqrt(np.sum(response**2))
    size = len(mix) + tail
    wet = np.fft.irfft(np.fft.rfft(mix, size) * np.fft.rfft(response, size), size)[: len(mix)]
    return mix + rng.uniform(0.1, 0.35) * wet


def _colour(mix: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A recording chain's tone: a spectral tilt of up to 2 dB an octave around 1 kHz."""
    frequency = np.maximum(np.fft.rfftfreq(len(mix), 1 / SAMPLE_RATE), 50.0)
    tilt = rng.uniform(-2, 2) / 6.02
    return np.fft.irfft(np.fft.rfft(mix) * (frequency / 1000) ** tilt, len(mix))


def compose(seconds: float, rng: np.random.Generator) -> Scene:
    """One random scene.

    Events lie at -10 to +2 dB, the noise at -45 to -18 dB below unit RMS, the whole at -30 to -10 dBFS
    (one clip in 50 of those without events is digital silence).
    """
    n = round(seconds * SAMPLE_RATE)
    mix = np.zeros(n)
    events = []
    for event in place(seconds, rng):
        start = int(event.onset * SAMPLE_RATE)
        length = (
            int((event.offset - event.onset) * 100) * SAMPLE_RATE // 100
        )  # whole 10 ms: fast FFTs
        mix[start : start + length] += render(event.label, length, rng) * _decibel(
            rng.uniform(-10, 2)
        )
        events.append(Event(event.label, start / SAMPLE_RATE, (start + length) / SAMPLE_RATE))
    if events and rng.random() < 0.2:
        mix = _room(mix, rng)
    if events or rng.random() > 0.1:
        mix += _noise(n, rng) * _decibel(rng.uniform(-45, -18))
    if rng.random() < 0.3:
        mix = _colour(mix, rng)
    mix *= _decibel(rng.uniform(-30, -10))
    peak = float(np.abs(mix).max())
    return Scene((mix / max(1.0, peak / 0.98)).astype(np.float32), tuple(events))
