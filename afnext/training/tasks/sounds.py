"""What sounds, when and how often: questions about events.

Answers have a fixed form that can be parsed and checked; questions are phrased in many ways. Times are
seconds with one decimal inside ``<t>...</t>``. Speech and music are events among the others here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from afnext.training.synthesis.scenes import Event
from afnext.training.synthesis.sounds import CLASSES
from afnext.training.tasks.exchange import Exchange, ask, seconds, span
from afnext.training.tasks.lexicon import UNHEARD, WORDS

Events = Sequence[Event]

EACH = 8  # sounds, at most, whose times are asked at once


def listing(events: Events) -> str:
    """``bell <t>1.2-2.5</t>, siren <t>3.0-4.1</t>.``, or ``Nothing.``"""
    return ", ".join(f"{e.label} {span(e)}" for e in events) + "." if events else "Nothing."


def counted(events: Events) -> str:
    """``bell, siren: 2.``, or ``0.``"""
    labels = ", ".join(e.label for e in events)
    return f"{labels}: {len(events)}." if events else "0."


def caption(events: Events) -> str:
    """One sentence; overlapping neighbours are joined by "while", others by "then"."""
    if not events:
        return "Nothing happens."
    text = WORDS[events[0].label].sentence
    for previous, event in pairwise(events):
        link = "while" if event.onset < previous.offset - 0.2 else "then"
        text += f", {link} {WORDS[event.label].sentence}"
    return text[0].upper() + text[1:] + "."


def absent_label(events: Events, rng: random.Random) -> str:
    """Something that is not in the clip; half of the time easily confused with what is."""
    present = {e.label for e in events}
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(UNHEARD)
    near = [c for e in events for c in WORDS[e.label].confused_with if c not in present]
    if roll < 0.6 and near:
        return rng.choice(near)
    return rng.choice([c for c in (*CLASSES, "speech", "music") if c not in present])


def _unique(events: Events) -> list[int]:
    labels = [e.label for e in events]
    return [i for i, label in enumerate(labels) if labels.count(label) == 1]


def _listing(events: Events, rng: random.Random) -> Exchange:
    return ask("list", listing(events), rng)


def _when(events: Events, rng: random.Random) -> Exchange:
    if not events or rng.random() < 0.2:
        label = absent_label(events, rng)
        return ask("when", f"There is no {label}.", rng, label)
    label = rng.choice(events).label
    return ask("when", listing([e for e in events if e.label == label]), rng, label)


def _when_each(events: Events, rng: random.Random) -> Exchange | None:
    """Several sounds at once, in any order: each must be found by what it is, none by what comes next."""
    present = list(dict.fromkeys(e.label for e in events))
    if len(present) < 2:
        return None
    labels = rng.sample(present, rng.randint(2, min(EACH, len(present))))
    if rng.random() < 0.3:
        labels.insert(rng.randint(0, len(labels)), absent_label(events, rng))
    heard = [[e for e in events if e.label == label] for label in labels]
    told = [
        listing(hits).removesuffix(".") if hits else f"no {label}"
        for label, hits in zip(labels, heard, strict=True)
    ]
    nouns = [f"the {WORDS[label].nouns[0] if label in WORDS else label}" for label in labels]
    named = f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    return ask("when_each", ", ".join(told) + ".", rng, nouns=named)


def _presence(events: Events, rng: random.Random) -> Exchange:
    if events and rng.random() < 0.5:
        return ask("presence", "Yes.", rng, rng.choice(events).label)
    return ask("presence", "No.", rng, absent_label(events, rng))


def _count(events: Events, rng: random.Random) -> Exchange:
    return ask("count", counted(events), rng)


def _count_of(events: Events, rng: random.Random) -> Exchange:
    present = bool(events) and rng.random() < 0.75
    label = rng.choice(events).label if present else absent_label(events, rng)
    hits = [e for e in events if e.label == label]
    return ask(
        "count_of", f"{', '.join(map(span, hits))}: {len(hits)}." if hits else "0.", rng, label
    )


def direct(task: str, answer: str) -> str:
    """The answer without what is counted before it: ``2.`` of ``bell, siren: 2.``; that to other questions as
    it is.
    """
    return answer.rpartition(": ")[2] if task in ("count", "count_of") else answer


def _first(events: Events, rng: random.Random) -> Exchange:
    return ask("first", f"{events[0].label}." if events else "Nothing.", rng)


def _last(events: Events, rng: random.Random) -> Exchange:
    return ask("last", f"{events[-1].label}." if events else "Nothing.", rng)


def _neighbour(events: Events, rng: random.Random) -> Exchange | None:
    if not (unique := _unique(events)):
        return None
    i = rng.choice(unique)
    task, j = rng.choice((("after", i + 1), ("before", i - 1)))
    answer = f"{events[j].label}." if 0 <= j < len(events) else "Nothing."
    return ask(task, answer, rng, events[i].label)


def _pair(events: Events, rng: random.Random) -> Exchange | None:
    if len(unique := _unique(events)) < 2:
        return None
    i, j = rng.sample(unique, 2)
    a, b = events[i].label, events[j].label
    if rng.random() < 0.5:
        return ask("which_first", f"{a if i < j else b}.", rng, a, other=b)
    return ask("is_before", "Yes." if i < j else "No.", rng, a, other=b)


def _at(events: Events, rng: random.Random) -> Exchange | None:
    """A moment at least 0.2 s away from every onset and offset."""
    if not events:
        return None
    end = max(e.offset for e in events)
    for _ in range(8):
        if rng.random() < 0.75:
            event = rng.choice(events)
            moment = round(rng.uniform(event.onset, event.offset), 1)
        else:
            moment = round(rng.uniform(0, end), 1)
        if all(abs(moment - t) >= 0.2 for e in events for t in (e.onset, e.offset)):
            labels = [e.label for e in events if e.onset < moment < e.offset]
            answer = f"{', '.join(labels)}." if labels else "Nothing."
            return ask("at", answer, rng, time=seconds(moment))
    return None


def _caption(events: Events, rng: random.Random) -> Exchange:
    return ask("caption", caption(events), rng)


Maker = Callable[[Events, random.Random], "Exchange | None"]


MAKERS: dict[str, tuple[float, Maker]] = {
    "presence": (3.0, _presence),
    "when": (3.0, _when),
    "when_each": (2.0, _when_each),
    "count": (0.8, _count),
    "count_of": (0.4, _count_of),
    "first": (0.4, _first),
    "last": (0.4, _last),
    "neighbour": (0.8, _neighbour),
    "pair": (0.8, _pair),
    "at": (0.7, _at),
    "caption": (0.6, _caption),
    "list": (1.5, _listing),
}
"""How often each kind of question is drawn, and what makes it; None where it does not fit the clip."""
