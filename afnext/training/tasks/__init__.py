"""Questions about synthesised recordings, with their true answers."""

from __future__ import annotations

import random
from collections.abc import Mapping

from afnext.training.synthesis.scenes import Event, Scene
from afnext.training.tasks import music, several, sounds, speech
from afnext.training.tasks.exchange import Exchange
from afnext.training.tasks.refusal import refusal

__all__ = ["TASKS", "Exchange", "about", "about_two", "timeline"]

PAUSE = 0.6  # seconds between sentences that are one stretch of speech
REFUSALS = 0.02  # of all questions

TASKS = (*sounds.MAKERS, *speech.MAKERS, *music.MAKERS, *several.MAKERS, "refusal")
"""Every kind of question; a maker may word its kind in several ways, and say so in ``Exchange.task``."""


def timeline(scene: Scene) -> list[Event]:
    """All that is heard, as events: sounds, stretches of speech, melodies as music."""
    found = list(scene.events)
    for utterance in scene.utterances:
        last = found[-1] if found else None
        if last and last.label == "speech" and utterance.onset - last.offset < PAUSE:
            found[-1] = Event("speech", last.onset, max(last.offset, utterance.offset))
        else:
            found.append(Event("speech", utterance.onset, utterance.offset))
    found += (Event("music", melody.onset, melody.offset) for melody in scene.melodies)
    return sorted(found, key=lambda event: event.onset)


def about(scene: Scene, rng: random.Random, weights: Mapping[str, float] | None = None) -> Exchange:
    """A question about a recording: of what is to be heard in it, more of that than of what is not.

    ``weights`` replaces those of the kinds; one that it leaves out is not asked.

    Raises:
        ValueError: ``weights`` names no kind, or none of its kinds fits the recording.
    """
    if unknown := [task for task in weights or {} if task not in TASKS]:
        raise ValueError(f"about: no kind of question is called {unknown[0]!r}")
    if (weights is None or "refusal" in weights) and rng.random() < REFUSALS:
        return refusal(rng)
    events = timeline(scene)
    makers = {name: (w, make, events) for name, (w, make) in sounds.MAKERS.items()}
    if scene.utterances:
        makers |= {n: (w, make, scene.utterances) for n, (w, make) in speech.MAKERS.items()}  # type: ignore[misc]
    elif rng.random() < 0.05:
        makers = {"transcribe": (1.0, speech.MAKERS["transcribe"][1], ())}  # type: ignore[dict-item]
    if scene.melodies:
        makers |= {n: (w, make, scene.melodies) for n, (w, make) in music.MAKERS.items()}  # type: ignore[misc]
    if weights is not None:
        makers = {name: (weights[name], *makers[name][1:]) for name in makers if name in weights}
    while makers:
        names = list(makers)
        name = rng.choices(names, [makers[n][0] for n in names])[0]
        _, make, heard = makers[name]
        if exchange := make(heard, rng):  # type: ignore[arg-type]
            return exchange
        del makers[name]
    raise ValueError("about: no kind of question that is asked for fits the recording")


def about_two(first: Scene, second: Scene, rng: random.Random) -> Exchange:
    """A question about two recordings."""
    one, other = timeline(first), timeline(second)
    names = list(several.MAKERS)
    while True:
        name = rng.choices(names, [several.MAKERS[n][0] for n in names])[0]
        if exchange := several.MAKERS[name][1](one, other, rng):
            return exchange
