"""Which instrument, how fast, how loud, which notes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from afnext.training.synthesis.music import INSTRUMENTS, Melody
from afnext.training.tasks.exchange import Exchange, ask, seconds

Melodies = Sequence[Melody]

LOUDNESS = {
    "steady": "It stays about the same.", "louder": "It gets louder.", "softer": "It gets softer.",
}  # fmt: skip
SLOW, FAST = 80, 130  # beats a minute
MOST_NOTES = 16  # that an answer writes down


def pace(tempo: int) -> str:
    """In a word, and in beats a minute."""
    word = "Slow" if tempo < SLOW else "Fast" if tempo > FAST else "Moderate"
    return f"{word}, about {tempo} beats per minute."


def notes(melody: Melody) -> str:
    """``C4 <t>0.4</t>, E4 <t>0.9</t>.``"""
    return ", ".join(f"{n.name} <t>{seconds(n.onset)}</t>" for n in melody.notes) + "."


def _instrument(melodies: Melodies, rng: random.Random) -> Exchange:
    names = dict.fromkeys(m.instrument for m in melodies)
    return ask("instrument", f"{', '.join(names).capitalize()}.", rng)


def _instrument_presence(melodies: Melodies, rng: random.Random) -> Exchange:
    played = [m.instrument for m in melodies]
    if rng.random() < 0.5:
        return ask("instrument_presence", "Yes.", rng, rng.choice(played))
    absent = [i.name for i in INSTRUMENTS if i.name not in played]
    return ask("instrument_presence", "No.", rng, rng.choice(absent))


def _tempo(melodies: Melodies, rng: random.Random) -> Exchange | None:
    if len(melodies) != 1 or len(melodies[0].notes) < 4:
        return None
    return ask("tempo", pace(melodies[0].tempo), rng)


def _loudness(melodies: Melodies, rng: random.Random) -> Exchange | None:
    if len(melodies) != 1 or len(melodies[0].notes) < 4:
        return None
    return ask("loudness", LOUDNESS[melodies[0].loudness], rng)


def _notes(melodies: Melodies, rng: random.Random) -> Exchange | None:
    if len(melodies) != 1 or len(melodies[0].notes) > MOST_NOTES:
        return None
    return ask("notes", notes(melodies[0]), rng)


Maker = Callable[[Melodies, random.Random], "Exchange | None"]

MAKERS: dict[str, tuple[float, Maker]] = {
    "instrument": (2.0, _instrument),
    "instrument_presence": (1.0, _instrument_presence),
    "tempo": (0.7, _tempo),
    "loudness": (0.5, _loudness),
    "notes": (1.0, _notes),
}
