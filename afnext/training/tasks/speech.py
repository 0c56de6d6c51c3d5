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
        "[Can|Could|Would|Will] you [please |][transcribe|write down|write out|type|note down] [this|the speech|what is said|what they say|every word|the words that are spoken|the conversation]?",
        "[Please |][transcribe|write down|write out|note down|type] [this|the speech|what is said|what they say|what the person says|every word|all the words|the talk]",
        "[I need|I want|I would like|I'd like|Give me|Make|Show me|Send me] [a transcript|the transcript|the words|the text|a transcription|the spoken text|everything that is said]",
        "[What|Which words|What exactly] [do they say|does the person say|is said|is spoken|does he say|does she say|are they saying|did they say|is being said here|are they talking about, word for word]?",
        "[Tell me|Show me|Read me|Repeat] [what is said|what they say|what the person says|every word|the words|word for word what is said]",
        "[Turn|Convert|Bring] [this|the speech|the recording|the audio|what is said] [into|to] [text|words|writing]",
        "[Speech|Voice|Words|Spoken words] [as|to] text",
        "[I cannot hear it|My ears are bad|I missed that]. [What do they say?|What is said?|What did they say?|Write it down for me.]",
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
        "[Please |][transcribe|write down|write out|note down] [this|the speech|what is said|every sentence] with [times|timestamps|start and end times|seconds]",
        "[Can|Could|Would] you [transcribe|write down|write out] [this|the speech|what is said|every sentence] with [times|timestamps|start and end times]?",
        "[I need|I want|Give me|Make] [a transcript|the words|the text|subtitles] with [times|timestamps|start and end times|seconds]",
        "[What|Which words] [do they say|is said|is spoken|does the person say], and [when|at what times|at which seconds]?",
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
        "[Who|Which speaker|Which person|Which voice] [speaks|talks|is speaking|is talking] [when|at what time|at which times|from when to when]?",
        "[Please |][list|mark|give|show|find|note] [the turns|who speaks when|the speaker turns|when each speaker talks|the times of each speaker][ with times|]",
        "[Can|Could|Would] you [tell me|say|list|mark|work out] [who speaks when|when each person talks|the turns of each speaker|which speaker talks when]?",
        "[I need|I want|Give me] [the turns|a diarization|the speaker turns|the times of each voice|a list of who speaks when]",
        "[Speaker turns|Turns|Speaker times|Diarization][ with times|, please|]",
    ),
    "attribute": (
        "Transcribe the conversation with its speakers.",
        "Who says what?",
        "Write down the dialogue, speaker by speaker.",
        "Tell me who says what.",
        "Give a transcript with speaker names.",
        "Which speaker says what?",
        "[Please |][write down|transcribe|note down|show me] [who says what|the dialogue with speakers|what each speaker says|the talk, speaker by speaker]",
        "[Can|Could] you [write down|transcribe|tell me] [who says what|what each speaker says|what each person says]?",
    ),
    "speakers": (
        "How many people speak?",
        "How many speakers are there?",
        "How many different voices do you hear?",
        "Count the speakers.",
        "Tell me how many people speak.",
        "How many persons are talking?",
        "What is the number of speakers?",
        "How many [people|persons|speakers|voices|different people|different speakers] [do you hear|are there|talk|speak|can be heard|are in it|take part]?",
        "[Tell me|Say|Count|Give me] [the number of speakers|how many people talk|how many voices there are]",
    ),
    "interrupted": (
        "Does anybody interrupt somebody else?",
        "Do people talk over one another?",
        "Is there an interruption?",
        "Tell me whether anybody is interrupted.",
        "Do the speakers interrupt each other?",
        "[Is|Was] [anybody|somebody|anyone|a speaker] [interrupted|cut off]?",
        "Do [they|the speakers|the people] [interrupt one another|talk at the same time|cut each other off]?",
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
