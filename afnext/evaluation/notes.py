"""Melodies: notes of an answer against those that were played."""

from __future__ import annotations

import re
from collections.abc import Sequence

from afnext.evaluation.events import on_time
from afnext.evaluation.score import Scores, Share
from afnext.training.synthesis.music import PITCHES, Note
from afnext.training.synthesis.scenes import Event

TOLERANCE = 0.1
"""A note is right if its pitch is, and its onset lies within this many seconds: rounding to tenths takes
50 ms, and music transcription (MIREX) allows 50 ms."""

_NOTE = re.compile(r"\b([A-G]#?)(-?\d)\s*<t>(\d+(?:\.\d+)?)")


def parse_notes(text: str) -> list[Event]:
    """Notes of an answer such as ``C4 <t>0.4</t>, E4 <t>0.9</t>.``, each with its pitch's name as label."""
    found = []
    for pitch, octave, onset in _NOTE.findall(text):
        if pitch in PITCHES:
            found.append(Event(f"{pitch}{octave}", float(onset), float(onset)))
    return found


def note_scores(truth: Sequence[Note], found: Sequence[Event]) -> Scores:
    """Precision, recall and F1 of notes; F1 of onsets whatever the pitch."""
    true = [Event(n.name, n.onset, n.offset) for n in truth]
    hits = on_time(true, found, TOLERANCE)
    onsets = on_time(_unnamed(true), _unnamed(found), TOLERANCE)
    both = len(true) + len(found)
    return {
        "f1": Share(2 * hits, both),
        "precision": Share(hits, len(found)),
        "recall": Share(hits, len(true)),
        "onset f1": Share(2 * onsets, both),
    }


def _unnamed(events: Sequence[Event]) -> list[Event]:
    return [Event("", e.onset, e.offset) for e in events]
