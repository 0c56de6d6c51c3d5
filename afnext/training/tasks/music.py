"""Which instrument, how fast, how loud, which notes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from afnext.training.synthesis.music import INSTRUMENTS, Melody
from afnext.training.tasks.exchange import Exchange, ask, seconds

Melodies = Sequence[Melody]

QUESTIONS: dict[str, tuple[str, ...]] = {
    "instrument": (
        "Which instrument plays?",
        "What instrument is this?",
        "What instrument do you hear?",
        "Name the instrument.",
        "Which instrument is playing the melody?",
        "Tell me which instrument plays.",
        "Can you name the instrument?",
        "What is the melody played on?",
        "What kind of instrument is heard?",
        "Recognise the instrument.",
        "Which instrument do you hear?",
        "What is playing here?",
        "What plays the tune?",
        "[What|Which] [instrument|kind of instrument|sort of instrument] [is it|is this|is that|is played|is playing|plays here|do I hear|is used|can be heard]?",
        "[Can|Could|Would] you [tell me|name|recognise|identify|say] [the instrument|which instrument plays|what instrument it is|what is playing]?",
        "[Please |][name|identify|recognise|tell me|find out|say] [the instrument|which instrument plays|what instrument it is|what the music is played on]",
        "[What|Which instrument] [is the tune|is the music|is this|is it] played [on|with]?",
        "[I want to know|I wonder|I'd like to know|Do you know] [which instrument plays|what instrument this is|what is played here]",
        "[Instrument|Name of the instrument|Which instrument]?",
        "[Who or what|What] [makes|plays] [the music|this music|the melody]?",
    ),
    "instrument_presence": (
        "Is there {a}?",
        "Do you hear {a}?",
        "Does {a} play?",
        "Is {a} playing?",
        "Can you hear {a} in this recording?",
        "Tell me if {a} plays.",
        "Is it {a} that plays?",
        "Is the melody played on {a}?",
        "[Do|Can|Did] you [hear|recognise|notice] {a} [here|playing|in the music|in this]?",
        "[Is|Was] [there {a} in the music|{a} playing here|the tune played on {a}|this {a}|that {a}]?",
        "[Tell me|Say|Check] [if|whether] [there is {a}|{a} is playing|you hear {a}]",
    ),
    "tempo": (
        "How fast is the music?",
        "What is the tempo?",
        "How many beats per minute does the melody have?",
        "Is the melody slow or fast?",
        "Tell me the tempo.",
        "What tempo does the music have?",
        "How quick is the melody?",
        "[How fast|How quick|How slow] [is|was] [it|the tune|the melody|the music|the piece]?",
        "[Tell me|Give me|Say|I want|Estimate] [the tempo|the speed of the music|how fast the music is|the beats per minute]",
    ),
    "loudness": (
        "Does the music get louder or softer?",
        "How does the loudness of the melody change?",
        "Is there a crescendo or a diminuendo?",
        "Tell me how the loudness changes.",
        "Does the melody become louder?",
        "[Does|Did] [it|the tune|the music|the melody] [get|become|grow] [louder|softer|quieter|louder or softer]?",
        "[How does|How did] the [volume|loudness] [change|develop]?",
    ),
    "notes": (
        "Write down the melody with times.",
        "Which notes are played, and when?",
        "Transcribe the melody.",
        "List the notes with their onsets.",
        "Give me the notes with times.",
        "What are the notes of the melody?",
        "Note down the tune.",
        "[Please |][write down|note down|list|transcribe|give me] [the notes|the melody|the tune|all the notes][ with times| and their onsets|]",
        "[Which|What] [notes|tones] [are played|are there|do you hear|does the melody have][, and when|]?",
    ),
}
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


def _ask(task: str, answer: str, rng: random.Random, label: str = "") -> Exchange:
    return ask(task, QUESTIONS[task], answer, rng, label)


def _instrument(melodies: Melodies, rng: random.Random) -> Exchange:
    names = dict.fromkeys(m.instrument for m in melodies)
    return _ask("instrument", f"{', '.join(names).capitalize()}.", rng)


def _instrument_presence(melodies: Melodies, rng: random.Random) -> Exchange:
    played = [m.instrument for m in melodies]
    if rng.random() < 0.5:
        return _ask("instrument_presence", "Yes.", rng, rng.choice(played))
    absent = [i.name for i in INSTRUMENTS if i.name not in played]
    return _ask("instrument_presence", "No.", rng, rng.choice(absent))


def _tempo(melodies: Melodies, rng: random.Random) -> Exchange | None:
    if len(melodies) != 1 or len(melodies[0].notes) < 4:
        return None
    return _ask("tempo", pace(melodies[0].tempo), rng)


def _loudness(melodies: Melodies, rng: random.Random) -> Exchange | None:
    if len(melodies) != 1 or len(melodies[0].notes) < 4:
        return None
    return _ask("loudness", LOUDNESS[melodies[0].loudness], rng)


def _notes(melodies: Melodies, rng: random.Random) -> Exchange | None:
    if len(melodies) != 1 or len(melodies[0].notes) > MOST_NOTES:
        return None
    return _ask("notes", notes(melodies[0]), rng)


Maker = Callable[[Melodies, random.Random], "Exchange | None"]

MAKERS: dict[str, tuple[float, Maker]] = {
    "instrument": (2.0, _instrument),
    "instrument_presence": (1.0, _instrument_presence),
    "tempo": (0.7, _tempo),
    "loudness": (0.5, _loudness),
    "notes": (1.0, _notes),
}
