"""Questions about synthesised recordings, with their true answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from afnext.training.synthesis.scenes import Event, Scene
from afnext.training.tasks import music, several, sounds, speech
from afnext.training.tasks.exchange import Exchange
from afnext.training.tasks.refusal import refusal

__all__ = ["TASKS", "Exchange", "about", "about_two", "timeline"]

PAUSE = 0.6  # seconds between sentences that are one stretch of speech
REFUSALS = 0.02  # of all questions
NO_EVENTS = 0.4  # factor of questions about sounds where there is nothing but speech or music
UNHEARD_SPEECH = 0.05  # of questions about recordings without speech, that ask for a transcript

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


Maker = Callable[[], "Exchange | None"]


def _kinds(scene: Scene, rng: random.Random) -> dict[str, tuple[float, Maker]]:
    """The kinds of question that have a meaning for a recording, with their weights."""

    def bound(
        makers: Mapping[str, tuple[float, Any]], heard: Any, factor: float = 1.0
    ) -> dict[str, tuple[float, Maker]]:
        return {
            name: (factor * weight, partial(make, heard, rng))
            for name, (weight, make) in makers.items()
        }

    plain = (scene.utterances or scene.melodies) and not scene.events
    kinds = bound(sounds.MAKERS, timeline(scene), NO_EVENTS if plain else 1.0)
    if scene.utterances:
        kinds |= bound(speech.MAKERS, scene.utterances)
    if scene.melodies:
        kinds |= bound(music.MAKERS, scene.melodies)
    if not scene.utterances:
        _, transcribe = speech.MAKERS["transcribe"]
        kinds["transcribe"] = (_share(UNHEARD_SPEECH, kinds), partial(transcribe, (), rng))
    kinds["refusal"] = (_share(REFUSALS, kinds), partial(refusal, rng))
    return kinds


def _share(part: float, kinds: Mapping[str, tuple[float, Maker]]) -> float:
    """The weight that a further kind needs to be that part of all."""
    return sum(weight for weight, _ in kinds.values()) * part / (1 - part)


def about(scene: Scene, rng: random.Random, weights: Mapping[str, float] | None = None) -> Exchange:
    """A question about a recording: of what is to be heard in it, more of that than of what is not.

    ``weights`` replaces those of the kinds; one that it leaves out is not asked.

    Raises:
        ValueError: ``weights`` names no kind, or none of its kinds fits the recording.
    """
    if unknown := [task for task in weights or {} if task not in TASKS]:
        raise ValueError(f"about: no kind of question is called {unknown[0]!r}")
    kinds = _kinds(scene, rng)
    if weights is not None:
        kinds = {
            name: (weights[name], make)
            for name, (_, make) in kinds.items()
            if weights.get(name, 0) > 0
        }
    while kinds:
        name = rng.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        _, make = kinds.pop(name)
        if exchange := make():
            return exchange
    raise ValueError("about: no kind of question that is asked for fits the recording")


def about_two(first: Scene, second: Scene, rng: random.Random) -> Exchange:
    """A question about two recordings."""
    one, other = timeline(first), timeline(second)
    names = list(several.MAKERS)
    while True:
        name = rng.choices(names, [several.MAKERS[n][0] for n in names])[0]
        if exchange := several.MAKERS[name][1](one, other, rng):
            return exchange
