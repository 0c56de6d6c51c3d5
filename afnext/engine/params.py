"""What a caller may ask of generation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SEED_LIMIT = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """How to choose tokens and when to stop.

    Attributes:
        max_tokens: at most this many new tokens.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability, in (0, 1].
        min_p: drop tokens less likely than this share of the likeliest, in [0, 1).
        repetition_penalty: above 1, makes tokens of the prompt and the answer less likely.
        seed: of sampling; the same seed gives the same text. None draws one.
        stop: the answer ends before the first of these strings.
        n: answers to one prompt, which is read once; the i-th is sampled with ``seed + i``.
        logprobs: None, or for each token its log-probability and those of so many likeliest ones, before
            temperature and penalties.
        timeout: seconds after which the answer ends where it is.
        speculate: tokens that are guessed from what the prompt and the answer repeat, and checked at once.
            What is said stays the same.

    Raises:
        ValueError: naming the value that is out of its range, or the two that contradict each other.
    """

    max_tokens: int = 1024
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    timeout: float | None = None
    speculate: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.stop, Iterable):
            raise ValueError(f"stop: must be non-empty strings, got {self.stop!r}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        whole = {
            "max_tokens": (self.max_tokens, 1),
            "top_k": (self.top_k, 0),
            "n": (self.n, 1),
            "logprobs": (0 if self.logprobs is None else self.logprobs, 0),
            "speculate": (self.speculate, 0),
        }
        for name, (value, least) in whole.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: must be a whole number from {least}, got {value!r}")
        ranges = {
            "temperature": (self.temperature, "a number from 0", lambda v: v >= 0),
            "top_p": (self.top_p, "above 0 and at most 1", lambda v: 0 < v <= 1),
            "min_p": (self.min_p, "from 0 and below 1", lambda v: 0 <= v < 1),
            "repetition_penalty": (self.repetition_penalty, "above 0", lambda v: v > 0),
            "timeout": (1 if self.timeout is None else self.timeout, "above 0", lambda v: v > 0),
        }
        for name, (number, wanted, holds) in ranges.items():
            real = isinstance(number, int | float) and math.isfinite(number)
            if not real or not holds(number):
                raise ValueError(f"{name}: must be {wanted}, got {number!r}")
        seed = self.seed
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT):
            raise ValueError(f"seed: must be a whole number from 0 below 2**63, got {seed!r}")
        if not all(isinstance(s, str) and s for s in stop):
            raise ValueError(f"stop: must be non-empty strings, got {self.stop!r}")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n: {self.n} greedy answers are the same one: set a temperature")
        if self.n > 1 and seed is not None and seed + self.n > SEED_LIMIT:
            raise ValueError(f"seed: seed + n must stay within 2**63, got {seed} + {self.n}")
