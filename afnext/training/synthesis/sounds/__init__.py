"""Classes of sound event, each of two or three small random synthesisers, so that a class is no one waveform.

A synthesiser takes a length in samples and a random generator and returns a float64 waveform whose audible
part fills that length: decays are scaled to it, so that onset and offset are meaningful labels.
:func:`render` fades the edges and normalises to unit RMS.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afnext.training.synthesis.sounds import animals, impacts, signals, textures
from afnext.training.synthesis.sounds.elements import SAMPLE_RATE, Rng, Synthesiser

__all__ = ["CLASSES", "SAMPLE_RATE", "SYNTHESISERS", "render"]

FADE_MS = 8


def _of_class(name: str) -> tuple[Synthesiser, ...]:
    found = [
        value
        for module in (signals, impacts, textures, animals)
        for key, value in vars(module).items()
        if key.startswith(f"{name}_") and callable(value)
    ]
    return tuple(found)


CLASSES: tuple[str, ...] = (
    *("bell", "siren", "beep", "alarm", "buzz", "horn", "phone", "whistle", "slide"),
    *("knock", "tick", "drum", "clap", "footsteps", "glass", "drip"),
    *("hiss", "rumble", "wind", "engine", "helicopter"),
    *("bird", "dog", "cat", "frog", "cricket"),
)
SYNTHESISERS: dict[str, tuple[Synthesiser, ...]] = {name: _of_class(name) for name in CLASSES}
"""By class, those that draw from it; their functions are named after it."""


def render(name: str, n: int, rng: Rng, method: int | None = None) -> NDArray[np.float32]:
    """One event of class ``name``: ``n`` samples at 16 kHz, unit RMS, 8 ms fades at both ends.

    ``method`` is the synthesiser's place in ``SYNTHESISERS[name]``, drawn unless given.
    """
    methods = SYNTHESISERS[name]
    wave = methods[rng.integers(len(methods)) if method is None else method](n, rng)
    k = min(SAMPLE_RATE * FADE_MS // 1000, n // 2)
    ramp = np.linspace(0, 1, k)
    wave[:k] *= ramp
    wave[n - k :] *= ramp[::-1]
    return (wave / (np.sqrt(np.mean(wave**2)) + 1e-6)).astype(np.float32)
