"""What a caller may ask of generation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .constraint import Constraint

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
        stop: the answer ends before the first of these strings; ``Assistant`` looks for them.
        n: answers to one prompt, which is read once; the i-th is sampled with ``seed + i``.
        logprobs: None, or for each token its log-probability and those of so many likeliest ones, before
            temperature and penalties.
        timeout: seconds after which the answer ends where it is; ``Assistant`` counts from when it was asked,
            recordings that are read included.
        speculate: tokens that are guessed, by the engine's draft model or else from what the prompt and
            the answer repeat, and checked at once. What is said stays the same.
        json_schema: the answer is JSON that fulfils this schema, an object or its text; it is cut off where
            ``max_tokens`` comes first. At most one of this and the two below.
        choice: the answer is one of these strings.
        regex: the whole answer matches, in the syntax of Rust's ``regex``; no look-around.
        constraint: what one of these three was compiled to; ``Assistant`` does that.

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
    json_schema: str | Mapping[str, Any] | None = None
    choice: tuple[str, ...] | None = None
    regex: str | None = None
    constraint: Constraint | None = None

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
            require_whole(name, value, least)
        ranges = {
            "temperature": (self.temperature, "a number from 0", lambda v: v >= 0),
            "top_p": (self.top_p, "above 0 and at most 1", lambda v: 0 < v <= 1),
            "min_p": (self.min_p, "from 0 and below 1", lambda v: 0 <= v < 1),
            "repetition_penalty": (self.repetition_penalty, "above 0", lambda v: v > 0),
            "timeout": (1 if self.timeout is None else self.timeout, "above 0", lambda v: v > 0),
        }
        for name, (number, wanted, holds) in ranges.items():
            real = isinstance(number, int | float) and not isinstance(number, bool)
            if not real or not math.isfinite(number) or not holds(number):
                raise ValueError(f"{name}: must be {wanted}, got {number!r}")
        seed = self.seed
        whole_seed = isinstance(seed, int) and not isinstance(seed, bool)
        if seed is not None and (not whole_seed or not 0 <= seed < SEED_LIMIT):
            raise ValueError(f"seed: must be a whole number from 0 below 2**63, got {seed!r}")
        if not all(isinstance(s, str) and s for s in stop):
            raise ValueError(f"stop: must be non-empty strings, got {self.stop!r}")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n: {self.n} greedy answers are the same one: set a temperature")
        if self.n > 1 and seed is not None and seed + self.n > SEED_LIMIT:
            raise ValueError(f"seed: seed + n must stay within 2**63, got {seed} + {self.n}")
        self._check_constraint()

    @property
    def grammar(self) -> tuple[str, Any] | None:
        """What the answer is bound to, as (kind, source), or None."""
        sources = {"json_schema": self.json_schema, "choice": self.choice, "regex": self.regex}
        return next(((kind, s) for kind, s in sources.items() if s is not None), None)

    def _check_constraint(self) -> None:
        given = [n for n in ("json_schema", "choice", "regex") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[1]}: cannot go with {given[0]}; give one of them")
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        if self.choice is not None:
            texts = self.choice
            listed = isinstance(texts, Iterable) and not isinstance(texts, str)
            choice = tuple(texts) if listed else ()
            if not choice or not all(isinstance(c, str) and c for c in choice):
                raise ValueError(f"choice: must be a list of non-empty strings, got {texts!r}")
            object.__setattr__(self, "choice", choice)
        if self.regex is not None and (not isinstance(self.regex, str) or not self.regex):
            raise ValueError(f"regex: must be a regular expression, got {self.regex!r}")


def _schema_text(schema: Any) -> str:
    """A JSON schema as canonical text, so that equal ones are compiled once."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else dict(schema)
        text = json.dumps(parsed)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"json_schema: is not JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"json_schema: must be an object, got {text}")
    return text


def require_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ``ValueError`` for an argument that is no whole number in its range."""
    right = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not right or (most is not None and value > most):  # type: ignore[operator]
        upto = "" if most is None else f" to {most}"
        raise ValueError(f"{name}: must be a whole number from {least}{upto}, got {value!r}")
