"""How much of prompts a step may read, so that it does not take long."""

from __future__ import annotations

import math

TALKING = 0.5  # seconds of a step while somebody's answer is being written
ALONE = 4.0  # while nobody's is: cancellations, deadlines and new requests wait as long
LEAST = 32  # tokens: with fewer, reading the weights is most of a step
# Seconds for a byte of weights and a token, before anything is measured: of a slow CPU with 8-bit weights,
# and of a slow GPU with 16-bit ones.
GUESSES = {"cpu": 4e-12}
GUESS = 1e-14


class Pace:
    """Measures steps.

    Limits are powers of two, so that the same prompt is mostly read in the same pieces.

    Args:
        device: type of the model's device.
        weights: bytes that a token reads.
    """

    def __init__(self, device: str, weights: int) -> None:
        self._seconds = weights * GUESSES.get(device, GUESS)

    def took(self, tokens: int, seconds: float) -> None:
        """A step with so many tokens of prompts took so long; few tell little, and are not counted."""
        if tokens >= LEAST:
            self._seconds = (self._seconds + seconds / tokens) / 2

    def limit(self, talking: bool) -> int:
        """Most tokens of prompts in the next step; ``talking``: somebody decodes meanwhile."""
        most = (TALKING if talking else ALONE) / max(self._seconds, 1e-9)
        return max(LEAST, 1 << int(math.log2(max(most, 1.0))))
