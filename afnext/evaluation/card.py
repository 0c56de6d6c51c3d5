"""Figures as Markdown, for a model's card: each with its interval, chance and target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SECONDS = ("onset error",)  # measures that are times; all others are shares
NAMES = {
    "right": "right", "f1": "F1", "class f1": "F1 of classes", "onset f1": "F1 of onsets",
    "precision": "precision", "recall": "recall", "wer": "word error rate", "cpwer": "cpWER",
    "word for word": "word for word", "onset error": "onset error, median",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is to reach: at least ``value``, or at most."""

    value: float
    most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.value if self.most else value >= self.value


TARGETS: dict[tuple[str, str], Target] = {
    ("transcribe", "wer"): Target(0.10, most=True),
    ("events", "f1"): Target(0.90),
    ("events, 12 to 30 s", "f1"): Target(0.85),
    ("events", "onset error"): Target(0.1, most=True),
    ("counting (all)", "right"): Target(0.85),
    ("order (all)", "right"): Target(0.85),
    ("presence, absent", "right"): Target(0.95),
    ("instrument", "right"): Target(0.85),
    ("search, present", "right"): Target(0.80),
    ("two recordings (all)", "right"): Target(0.85),
    ("diarize", "f1"): Target(0.70),
}


def tables(scores: Mapping[str, Any]) -> str:
    """Two tables of an evaluation as :meth:`Evaluation.to_dict` gives it: with targets, and all others. Those
    of a part of the recordings say so, and name no target.
    """
    figures, part = scores["figures"], limited(scores)
    aimed = [key for key in TARGETS if key[1] in figures.get(key[0], {})]
    others = [(kind, measure) for kind in figures for measure in figures[kind]]
    rows = [
        "| asked | measure | value | 95 % interval | chance | target | questions | recordings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = [_row(figures, *key, aimed=not part) for key in aimed]
    second = [_row(figures, *key) for key in others if key not in TARGETS]
    return "\n".join([*rows, *first, "", *rows, *second, "", *([part, ""] if part else [])])


def limited(scores: Mapping[str, Any]) -> str:
    """That an evaluation heard but a part of the recordings, if it did; else nothing."""
    if (limit := scores.get("limit")) is None:
        return ""
    return (
        f"These figures are of {scores['recordings']} recordings, at most {limit} of each group. Targets are "
        "of the whole set, and are not judged."
    )


def missed(scores: Mapping[str, Any]) -> Iterator[str]:
    """The targets that are not met, each in a line; of a part of the recordings none is judged."""
    if limited(scores):
        return
    for (kind, measure), target in TARGETS.items():
        figure = scores["figures"].get(kind, {}).get(measure)
        if figure is not None and not target.met(figure["value"]):
            said = f"{_text(measure, figure['value'])}, to be {_aim(measure, target)}"
            yield f"{kind}, {NAMES[measure]}: {said}"


def _row(figures: Mapping[str, Any], kind: str, measure: str, *, aimed: bool = True) -> str:
    figure, target = figures[kind][measure], TARGETS.get((kind, measure)) if aimed else None
    chance = figure["chance"]
    cells = [
        kind, NAMES.get(measure, measure), _text(measure, figure["value"]),
        f"{_text(measure, figure['low'])} to {_text(measure, figure['high'])}",
        "" if chance is None else _text(measure, chance),
        "" if target is None else _aim(measure, target),
        str(figure["questions"]), str(figure["recordings"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _aim(measure: str, target: Target) -> str:
    return f"{'at most' if target.most else 'at least'} {_text(measure, target.value)}"


def _text(measure: str, value: float) -> str:
    return f"{value:.2f} s" if measure in SECONDS else f"{100 * value:.1f} %"
