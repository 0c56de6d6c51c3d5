"""Sound event lists: reading them from an answer and matching them against the truth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from afnext.training.synthesis import Event

TOLERANCE = 0.25
"""An onset is right within this many seconds: the collar of the DCASE challenges is 200 ms."""

_ITEM = re.compile(r"([A-Za-z][A-Za-z ]*?)\s*<t>(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)</t>")


def parse_events(text: str) -> list[Event]:
    """Events of an answer such as ``bell <t>1.2-2.5</t>, siren <t>3.0-4.1</t>.``; others are ignored."""
    return [Event(label.lower(), float(a), float(b)) for label, a, b in _ITEM.findall(text)]


def match(truth: Sequence[Event], found: Sequence[Event]) -> list[tuple[Event, Event]]:
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


@dataclass
class EventScore:
    """Counts over many clips. Events match by class; ``on_time`` also asks for the onset."""

    true: int = 0
    found: int = 0
    matched: int = 0
    on_time: int = 0
    exact: int = 0
    clips: int = 0
    onset_errors: list[float] = field(default_factory=list)
    offset_errors: list[float] = field(default_factory=list)

    def add(self, truth: Sequence[Event], found: Sequence[Event]) -> None:
        """Count one clip."""
        pairs = match(truth, found)
        onsets = [abs(t.onset - f.onset) for t, f in pairs]
        self.true += len(truth)
        self.found += len(found)
        self.matched += len(pairs)
        self.on_time += sum(e <= TOLERANCE for e in onsets)
        self.exact += len(pairs) == len(truth) == len(found)
        self.clips += 1
        self.onset_errors += onsets
        self.offset_errors += [abs(t.offset - f.offset) for t, f in pairs]

    def summary(self) -> dict[str, float]:
        """Shares in 0..1 and times in seconds; 0 where there is nothing to count."""

        def share(part: int, whole: int) -> float:
            return part / whole if whole else 0.0

        return {
            "clips": self.clips,
            "events": self.true,
            "recall": share(self.matched, self.true),
            "precision": share(self.matched, self.found),
            "recall_250ms": share(self.on_time, self.true),
            "precision_250ms": share(self.on_time, self.found),
            "same_set": share(self.exact, self.clips),
            "onset_median": median(self.onset_errors) if self.onset_errors else 0.0,
            "onset_p90": quantile(self.onset_errors, 0.9),
            "offset_median": median(self.offset_errors) if self.offset_errors else 0.0,
        }


def quantile(values: Iterable[float], q: float) -> float:
    """The value below which a share ``q`` lies (nearest rank); 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
