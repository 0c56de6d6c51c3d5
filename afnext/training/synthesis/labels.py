"""What is to be heard in a recording, as JSON: the labels that lie beside it in a shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from afnext.errors import AfnextError
from afnext.training.synthesis.music import Melody, Note
from afnext.training.synthesis.scenes import Event, Scene, Utterance

NO_SAMPLES = np.zeros(0, np.float32)
BEYOND = 0.05  # seconds that a label may lie behind the end: rounding


def to_json(scene: Scene, kind: str, seconds: float) -> dict[str, Any]:
    """Times in seconds, to a tenth of a millisecond; notes as ``[MIDI number, onset, offset]``."""

    def times(item: Event | Utterance | Note) -> list[float]:
        return [round(item.onset, 4), round(item.offset, 4)]

    return {
        "kind": kind,
        "seconds": seconds,
        "events": [[e.label, *times(e)] for e in scene.events],
        "utterances": [[u.speaker, u.text, *times(u)] for u in scene.utterances],
        "melodies": [
            {
                "instrument": m.instrument,
                "tempo": m.tempo,
                "loudness": m.loudness,
                "notes": [[n.pitch, *times(n)] for n in m.notes],
            }
            for m in scene.melodies
        ],
    }


def from_json(labels: Mapping[str, Any], where: str = "labels") -> Scene:
    """The scene of some labels, without its samples.

    Raises:
        AfnextError: a field is missing or ill-typed, or a time lies past the recording's end.
    """
    try:
        scene = Scene(
            NO_SAMPLES,
            tuple(Event(*e) for e in labels["events"]),
            tuple(Utterance(*u) for u in labels["utterances"]),
            tuple(
                Melody(
                    m["instrument"], tuple(Note(*n) for n in m["notes"]), m["tempo"], m["loudness"]
                )
                for m in labels["melodies"]
            ),
        )
        seconds = float(labels["seconds"])
        spans: list[tuple[str, Event | Utterance | Melody | Note]] = [
            *((event.label, event) for event in scene.events),
            *((utterance.speaker, utterance) for utterance in scene.utterances),
            *((melody.instrument, melody) for melody in scene.melodies),
            *((note.name, note) for melody in scene.melodies for note in melody.notes),
        ]
        wrong = [s for s in spans if not 0 <= s[1].onset < s[1].offset <= seconds + BEYOND]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise AfnextError(f"{where}: not the labels of a recording ({error!r})") from None
    for name, item in wrong:
        raise AfnextError(
            f"{where}: {name} from {item.onset:g} to {item.offset:g} s is no time within {seconds:g} s"
        )
    return scene
