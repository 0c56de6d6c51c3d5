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
        end = float(labels["seconds"]) + BEYOND
        spans: tuple[Event | Utterance | Melody, ...] = (
            *scene.events, *scene.utterances, *scene.melodies,
        )  # fmt: skip
        for item in spans:
            if not 0 <= item.onset < item.offset <= end:
                raise AfnextError(
                    f"{where}: {item.onset:g} to {item.offset:g} s is no time within {labels['seconds']:g} s"
                )
    except (KeyError, TypeError, IndexError) as error:
        raise AfnextError(f"{where}: not the labels of a recording ({error!r})") from None
    return scene
