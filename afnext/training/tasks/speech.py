"""What is said, when and by whom."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from afnext.training.synthesis.scenes import Utterance
from afnext.training.synthesis.sentences import number
from afnext.training.tasks.exchange import Exchange, ask, span

Utterances = Sequence[Utterance]

QUESTIONS: dict[str, tuple[str, ...]] = {
    "transcribe": (
        "Transcribe the input speech.",
        "Transcribe the input audio.",
        "Transcribe this recording.",
        "Transcribe the speech.",
        "What is being said?",
        "What is said in this recording?",
        "What do they say?",
        "Write down what the speaker says.",
        "Write down every word.",
        "Please transcribe.",
        "Can you transcribe this?",
        "Could you write down what is said?",
        "Tell me what is said.",
        "What does the speaker say?",
        "What are the words?",
        "Give me the words that are spoken.",
        "I want to read what is said.",
        "Turn the speech into words.",
        "Please write out the speech.",
        "Convert the speech to text.",
        "Write the text of this recording.",
        "Give me a transcript.",
        "I want a transcription of the recording.",
        "Type what you hear them say.",
        "Speech to text.",
        "Transcript, please.",
    ),
    "transcribe_timed": (
        "Transcribe the input audio with timestamps.",
        "Transcribe the speech with times.",
        "What is said, and when?",
        "Write down every sentence with its start and end time.",
        "Give a timestamped transcript.",
        "Transcribe with timestamps.",
        "Can you give me a transcript with times?",
        "Write down what is said and when.",
        "Give each sentence with its times.",
        "I want a transcript that has timestamps.",
    ),
    "diarize": (
        "Who speaks when?",
        "Which speaker talks when?",
        "Who is talking, and at what times?",
        "Give the speaker turns with times.",
        "Diarize the recording.",
        "List the turns of each speaker.",
        "Tell me who speaks when.",
        "When does each speaker talk?",
        "Can you mark the turns of the speakers?",
    ),
    "attribute": (
        "Transcribe the conversation with its speakers.",
        "Who says what?",
        "Write down the dialogue, speaker by speaker.",
        "Tell me who says what.",
        "Give a transcript with speaker names.",
        "Which speaker says what?",
    ),
    "speakers": (
        "How many people speak?",
        "How many speakers are there?",
        "How many different voices do you hear?",
        "Count the speakers.",
        "Tell me how many people speak.",
        "How many persons are talking?",
        "What is the number of speakers?",
    ),
    "interrupted": (
        "Does anybody interrupt somebody else?",
        "Do people talk over one another?",
        "Is there an interruption?",
        "Tell me whether anybody is interrupted.",
        "Do the speakers interrupt each other?",
    ),
}


def numbered(utterances: Utterances) -> dict[str, str]:
    """``Speaker 1``, ``Speaker 2``, .. by who speaks first."""
    order = dict.fromkeys(u.speaker for u in utterances)
    return {speaker: f"Speaker {i}" for i, speaker in enumerate(order, 1)}


def transcript(utterances: Utterances) -> str:
    return " ".join(u.text for u in utterances) or "No speech was recognised."


def _ask(task: str, answer: str, rng: random.Random) -> Exchange:
    return ask(task, QUESTIONS[task], answer, rng)


def _transcribe(utterances: Utterances, rng: random.Random) -> Exchange:
    return _ask("transcribe", transcript(utterances), rng)


def _transcribe_timed(utterances: Utterances, rng: random.Random) -> Exchange | None:
    if not utterances:
        return None
    return _ask("transcribe_timed", "\n".join(f"{span(u)} {u.text}" for u in utterances), rng)


def _diarize(utterances: Utterances, rng: random.Random) -> Exchange | None:
    if not utterances:
        return None
    names = numbered(utterances)
    return _ask(
        "diarize", ", ".join(f"{names[u.speaker]} {span(u)}" for u in utterances) + ".", rng
    )


def _attribute(utterances: Utterances, rng: random.Random) -> Exchange | None:
    if len(utterances) < 2:
        return None
    names = numbered(utterances)
    lines = (f"{span(u)} {names[u.speaker]}: {u.text}" for u in utterances)
    return _ask("attribute", "\n".join(lines), rng)


def _speakers(utterances: Utterances, rng: random.Random) -> Exchange:
    return _ask("speakers", f"{number(len(numbered(utterances))).capitalize()}.", rng)


def _interrupted(utterances: Utterances, rng: random.Random) -> Exchange | None:
    if len(utterances) < 2:
        return None
    interrupted = any(b.onset < a.offset for a, b in pairwise(utterances))
    return _ask("interrupted", "Yes." if interrupted else "No.", rng)


Maker = Callable[[Utterances, random.Random], "Exchange | None"]

MAKERS: dict[str, tuple[float, Maker]] = {
    "transcribe": (3.0, _transcribe),
    "transcribe_timed": (1.5, _transcribe_timed),
    "diarize": (1.5, _diarize),
    "attribute": (0.5, _attribute),
    "speakers": (0.5, _speakers),
    "interrupted": (0.3, _interrupted),
}
