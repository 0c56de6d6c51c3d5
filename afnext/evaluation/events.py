"""Lists of sound events: reading them from an answer and matching them against the truth."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

from afnext.evaluation.score import Errors, Scores, Share
from afnext.training.synthesis.scenes import Event

TOLERANCE = 0.25
"""An onset is right within this many seconds: the collar of the DCASE challenges is 200 ms."""

_ITEM = re.compile(r"([A-Za-z][A-Za-z ]*?)\s*<t>(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)</t>")


class Labelled(Protocol):
    """What has a name and begins at a time."""

    @property
    def label(self) -> str: ...
    @property
    def onset(self) -> float: ...


T = TypeVar("T", bound=Labelled)


def parse_events(text: str) -> list[Event]:
    """Events of an answer such as ``bell <t>1.2-2.5</t>, siren <t>3.0-4.1</t>.``; others are ignored."""
    return [Event(label.lower(), float(a), float(b)) for label, a, b in _ITEM.findall(text)]


def match(truth: Sequence[T], found: Sequence[T]) -> list[tuple[T, T]]:
    """Pairs of one true and one found event of the same class, nearest onsets first, each used once."""
    pairs = sorted(
        (abs(t.onset - f.onset), i, j)
        for i, t in enumerate(truth)
        for j, f in enumerate(found)
        if t.label == f.label
    )
    used_truth: set[int] = set()
    used_found: set[int] = set()
    matched = []
    for _, i, j in pairs:
        if i not in used_truth and j not in used_found:
            used_truth.add(i)
            used_found.add(j)
            matched.append((truth[i], found[j]))
    return matched


def on_time(truth: Sequence[T], found: Sequence[T], tolerance: float = TOLERANCE) -> int:
    """The most pairs of the same class whose onsets lie within ``tolerance`` seconds, each used once.

    Times are taken in order, each true one with the first found one that is not too early for it, which
    is optimal where all tolerances are equal.
    """
    count = 0
    for label in {t.label for t in truth}:
        onsets = sorted(f.onset for f in found if f.label == label)
        for onset in sorted(t.onset for t in truth if t.label == label):
            while onsets and onsets[0] < onset - tolerance - 1e-9:
                onsets.pop(0)
            if onsets and onsets[0] <= onset + tolerance + 1e-9:
                onsets.pop(0)
                count += 1
    return count


def event_scores(truth: Sequence[Event], found: Sequence[Event]) -> Scores:
    """Precision, recall and F1 with onsets on time; F1 of the classes alone; errors of onsets found."""
    hits = on_time(truth, found)
    classes = Counter(t.label for t in truth) & Counter(f.label for f in found)
    both = len(truth) + len(found)
    return {
        "f1": Share(2 * hits, both),
        "precision": Share(hits, len(found)),
        "recall": Share(hits, len(truth)),
        "class f1": Share(2 * classes.total(), both),
        "onset error": Errors(tuple(abs(t.onset - f.onset) for t, f in match(truth, found))),
    }
