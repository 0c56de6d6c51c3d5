"""Figures from answers: each with its 95 % interval, and with what the same answers would score by chance.

An answer's score is made of parts that add up over answers: a share (right of asked, errors of words,
twice the matched of true and found) or errors of which the median is taken. Intervals come from a
bootstrap that draws recordings, because questions about one recording succeed and fail together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000  # of the bootstrap
DEALS = 4  # other recordings' answers that each question is given, for chance


@dataclass(frozen=True, slots=True)
class Share:
    """``part`` of ``whole``; both add up over answers."""

    part: float
    whole: float = 1.0


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of things found; their median is what counts."""

    values: tuple[float, ...]


Scores = Mapping[str, Share | Errors]
"""The measures of one answer, by name."""


def right(is_right: bool) -> Scores:
    """The scores of an answer that is right or wrong."""
    return {"right": Share(float(is_right))}


@dataclass(frozen=True)
class Answered:
    """A question that has been answered.

    Attributes:
        kind: what is asked; answers of one kind make one row of figures.
        family: of the kinds that answers are dealt among for chance.
        recording: who shares it, is drawn together.
        answer: the model's.
        score: what an answer to this question scores.
    """

    kind: str
    family: str
    recording: str
    answer: str
    score: Callable[[str], Scores]


@dataclass(frozen=True)
class Figure:
    """A measure of one kind of question.

    Attributes:
        value: the share, or the median of the errors; 0 of nothing.
        low, high: its 95 % interval. Where every answer is right it is empty: the bootstrap knows nothing
            else.
        chance: the value for answers dealt anew; None where there is one recording.
        questions, recordings: how many it is made of.
    """

    value: float
    low: float
    high: float
    chance: float | None
    questions: int
    recordings: int

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON, rounded to what is worth reading."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def figures(answered: Sequence[Answered], seed: int = 0) -> dict[str, dict[str, Figure]]:
    """By kind, in order of appearance, and by measure."""
    dealt = deal(answered, random.Random(seed))
    kinds: dict[str, list[int]] = {}
    for index, item in enumerate(answered):
        kinds.setdefault(item.kind, []).append(index)
    return {
        kind: _of_kind([answered[i] for i in own], [dealt[i] for i in own], seed)
        for kind, own in kinds.items()
    }


def deal(answered: Sequence[Answered], rng: random.Random) -> list[list[str]]:
    """For each question answers that were given about other recordings, in the same family."""
    families: dict[str, list[Answered]] = {}
    for item in answered:
        families.setdefault(item.family, []).append(item)
    several = {f: len({i.recording for i in items}) > 1 for f, items in families.items()}

    def other(item: Answered) -> str:
        while (found := rng.choice(families[item.family])).recording == item.recording:
            pass
        return found.answer

    return [[other(i) for _ in range(DEALS)] if several[i.family] else [] for i in answered]


def _of_kind(
    answered: Sequence[Answered], dealt: Sequence[Sequence[str]], seed: int
) -> dict[str, Figure]:
    recordings = {name: i for i, name in enumerate(dict.fromkeys(a.recording for a in answered))}
    owners = [recordings[a.recording] for a in answered]
    scores = [a.score(a.answer) for a in answered]
    by_chance = [a.score(d) for a, own in zip(answered, dealt, strict=True) for d in own]
    rng = np.random.default_rng(seed)
    count = len(recordings)
    weights = rng.multinomial(count, [1 / count] * count, size=DRAWS).astype(np.float64)
    found = {}
    for measure in dict.fromkeys(name for s in scores for name in s):
        parts = [
            (owner, s[measure]) for owner, s in zip(owners, scores, strict=True) if measure in s
        ]
        value = float(_values(parts, np.ones((1, count)))[0])
        low, high = np.quantile(_values(parts, weights), (0.025, 0.975))
        chances = [(0, s[measure]) for s in by_chance if measure in s]
        chance = float(_values(chances, np.ones((1, 1)))[0]) if chances else None
        asked, heard = len(parts), len({owner for owner, _ in parts})
        found[measure] = Figure(value, float(low), float(high), chance, asked, heard)
    return found


def _values(
    parts: Sequence[tuple[int, Share | Errors]], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The measure for each row of ``weights`` ``[D, recordings]``."""
    owner = np.array([o for o, part in parts for _ in _items(part)], dtype=np.intp)
    if isinstance(parts[0][1], Share):
        pairs = np.array([pair for _, part in parts for pair in _items(part)]).reshape(-1, 2)
        sums = weights[:, owner] @ pairs
        return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)
    values = np.array([value for _, part in parts for value in _items(part)], dtype=np.float64)
    if len(values) == 0:
        return np.zeros(len(weights))
    order = np.argsort(values)
    total = np.cumsum(weights[:, owner[order]], axis=1)
    middle = (total < total[:, -1:] / 2).sum(1)  # the first that half of the weight reaches
    return values[order][np.minimum(middle, len(values) - 1)]


def _items(part: Share | Errors) -> Sequence[tuple[float, float] | float]:
    return [(part.part, part.whole)] if isinstance(part, Share) else part.values
