"""Questions about two recordings: the same or not, which one has something."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from afnext.training.synthesis.scenes import Event
from afnext.training.tasks.exchange import Exchange, ask
from afnext.training.tasks.sounds import counted, listing

Events = Sequence[Event]

QUESTIONS: dict[str, tuple[str, ...]] = {
    "which_has": (
        "Which recording has {a}?",
        "In which of the two do you hear {a}?",
        "Which of the two recordings contains {a}?",
        "Where do you hear {a}, in the first or in the second recording?",
        "Tell me which recording has {a}.",
        "In which recording is there {a}?",
        "Is {a} in the first or in the second recording?",
        "[Which|Which one|Which of them|Which file|Which clip] [has|contains|features] [{a}|the {noun}]?",
        "[In which|In which one] [recording|clip|file|of them|of both] [do I hear|is there|is|can you hear] {a}?",
        "[Where|Which one] is [{a}|the {noun}], [one or two|first or second|in the first or the second]?",
        "[Tell me|Say|Find out] [which one|which recording|which of the two] [has|contains] [{a}|the {noun}]",
    ),
    "same_sounds": (
        "Do both recordings have the same sounds?",
        "Are the sounds in the two recordings the same?",
        "Is the same heard in both?",
        "Tell me whether the two have the same sounds.",
        "Do you hear the same sounds in both?",
        "[Are|Is] [both|the two|these two|the recordings] [alike|the same|equal] in [sounds|what is heard]?",
        "[Tell me|Check|Say] [if|whether] [both have the same sounds|the same is heard in both]",
    ),
    "in_both": (
        "Is {a} heard in both recordings?",
        "Do both recordings have {a}?",
        "Do you hear {a} in both?",
        "Is there {a} in both recordings?",
        "[Can|Do|Did] you [hear|find|notice] [{a}|the {noun}] in [both|both of them|each of the two]?",
    ),
    "more": (
        "Which recording has more sounds?",
        "In which of the two happens more?",
        "Tell me which recording has more sounds.",
        "Where are there more sounds, in the first or in the second recording?",
        "[Which|Which one|Which clip|Which of the two] [has|contains] more [sounds|events|noises|in it]?",
        "[Where|In which one] [do you hear|can you hear|are there] more [sounds|events|noises]?",
        "[Tell me|Say] [which one|which of the two] has more [sounds|events|noises]",
    ),
    "list_of": (
        "What do you hear in the {which} recording, and when?",
        "List the sounds of the {which} recording with their times.",
        "What happens in the {which} one, and when?",
        "[What|Which sounds] [is|are] in the {which} [recording|clip|file|one], and when?",
        "[What|Which sounds] [do you hear|can be heard|occur] in the {which} [recording|clip|file|one]?",
        "[List|Name|Give|Write down] the [sounds|events|noises] [of|in] the {which} [recording|clip|file|one]",
        "Only the {which} [recording|clip|file|one]: what [happens|is heard|do you hear] when?",
    ),
}
FIRST, SECOND = "The first.", "The second."


def _ask(task: str, answer: str, rng: random.Random, label: str = "", **fields: str) -> Exchange:
    return ask(task, QUESTIONS[task], answer, rng, label, **fields)


def _labels(events: Events) -> set[str]:
    return {e.label for e in events}


def _which_has(first: Events, second: Events, rng: random.Random) -> Exchange | None:
    one, other = _labels(first), _labels(second)
    if not one ^ other:
        return None
    label = rng.choice(sorted(one ^ other))
    return _ask("which_has", FIRST if label in one else SECOND, rng, label)


def _same_sounds(first: Events, second: Events, rng: random.Random) -> Exchange:
    return _ask("same_sounds", "Yes." if _labels(first) == _labels(second) else "No.", rng)


def _in_both(first: Events, second: Events, rng: random.Random) -> Exchange | None:
    one, other = _labels(first), _labels(second)
    if not one | other:
        return None
    shared = sorted(one & other)
    if shared and rng.random() < 0.5:
        return _ask("in_both", "Yes.", rng, rng.choice(shared))
    apart = sorted(one ^ other)
    return _ask("in_both", "No.", rng, rng.choice(apart)) if apart else None


def _more(first: Events, second: Events, rng: random.Random) -> Exchange | None:
    if len(first) == len(second):
        return None
    answer = FIRST if len(first) > len(second) else SECOND
    return _ask("more", f"{counted(first)} {counted(second)} {answer}", rng)


def _list_of(first: Events, second: Events, rng: random.Random) -> Exchange:
    which, events = rng.choice((("first", first), ("second", second)))
    return _ask("list_of", listing(events), rng, which=which)


Maker = Callable[[Events, Events, random.Random], "Exchange | None"]

MAKERS: dict[str, tuple[float, Maker]] = {
    "which_has": (2.0, _which_has),
    "same_sounds": (1.0, _same_sounds),
    "in_both": (0.7, _in_both),
    "more": (0.8, _more),
    "list_of": (1.2, _list_of),
}
