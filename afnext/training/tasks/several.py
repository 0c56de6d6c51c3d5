"""Questions about two recordings: the same or not, which one has something.

But for lists, an answer says what is heard in each before it says what follows from that:
``dog, bell. siren. siren: the second.``
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from afnext.training.synthesis.scenes import Event
from afnext.training.tasks.exchange import Exchange, ask
from afnext.training.tasks.sounds import counted, listing

Events = Sequence[Event]


def first_if(condition: bool) -> str:
    """Which recording it is."""
    return "The first." if condition else "The second."


def _heard(first: Events, second: Events) -> str:
    lists = (", ".join(e.label for e in events) or "Nothing" for events in (first, second))
    return " ".join(f"{said}." for said in lists)


def _labels(events: Events) -> set[str]:
    return {e.label for e in events}


def _which_has(first: Events, second: Events, rng: random.Random) -> Exchange | None:
    one, other = _labels(first), _labels(second)
    if not one ^ other:
        return None
    label = rng.choice(sorted(one ^ other))
    which = first_if(label in one).lower()
    return ask("which_has", f"{_heard(first, second)} {label}: {which}", rng, label)


def _same_sounds(first: Events, second: Events, rng: random.Random) -> Exchange:
    same = "Yes." if _labels(first) == _labels(second) else "No."
    return ask("same_sounds", f"{_heard(first, second)} {same}", rng)


def _in_both(first: Events, second: Events, rng: random.Random) -> Exchange | None:
    one, other = _labels(first), _labels(second)
    if not one | other:
        return None
    shared = sorted(one & other)
    heard = _heard(first, second)
    if shared and rng.random() < 0.5:
        return ask("in_both", f"{heard} Yes.", rng, rng.choice(shared))
    apart = sorted(one ^ other)
    return ask("in_both", f"{heard} No.", rng, rng.choice(apart)) if apart else None


def _more(first: Events, second: Events, rng: random.Random) -> Exchange | None:
    if len(first) == len(second):
        return None
    answer = first_if(len(first) > len(second))
    return ask("more", f"{counted(first)} {counted(second)} {answer}", rng)


def _list_of(first: Events, second: Events, rng: random.Random) -> Exchange:
    which, events = rng.choice((("first", first), ("second", second)))
    return ask("list_of", listing(events), rng, which=which)


Maker = Callable[[Events, Events, random.Random], "Exchange | None"]

MAKERS: dict[str, tuple[float, Maker]] = {
    "which_has": (2.0, _which_has),
    "same_sounds": (1.0, _same_sounds),
    "in_both": (0.7, _in_both),
    "more": (0.8, _more),
    "list_of": (1.2, _list_of),
}
