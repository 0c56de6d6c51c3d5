"""A question about a recording with its true answer, and how both are worded."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Protocol

import yaml

from afnext.training.tasks.lexicon import ANY_VERB, WORDS, article


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question about a clip and its true answer."""

    task: str
    question: str
    answer: str


class Span(Protocol):
    """Anything with times, in seconds from the start of the clip."""

    @property
    def onset(self) -> float: ...
    @property
    def offset(self) -> float: ...


LEADS = (
    *("Please ", "Tell me: ", "In this recording, ", "Listen. ", "Hello! ", "Listen carefully: "),
    *("Hi, ", "Hey, ", "Okay, ", "So, ", "Next: ", "Quick question: ", "I have a question: "),
    *("One more thing: ", "Just curious: ", "Good morning! ", "For my notes: ", "Here is a file. "),
)
PLAIN_LEADS = 6
ENDS = (" Thanks.", " Thank you.", " Please.", " Be brief.", " I am in a hurry.", " Thanks a lot!")

PHRASINGS: dict[str, list[str]] = yaml.safe_load(
    Path(__file__).with_name("phrasings.yaml").read_text(encoding="utf-8")
)
PLAIN = {"refusal": 12}  # phrasings that are asked plainly, where it is not this many:
FEW = 3
AS_SUCH = 0.6  # of questions about speech or music, in words of their own, as "Does anybody talk?"
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


class Plainly(random.Random):
    """Draws for somebody who words a question in one of the first ways that are listed for it.

    What evaluation asks stays the same so, when training learns further wordings.
    """


def worded(task: str, rng: random.Random) -> str:
    """One of a task's phrasings; of the first few, where ``rng`` asks plainly.

    ``[a|b|]`` in a phrasing is one of what is between the bars; one with more of them is chosen more often.
    """
    phrasings = PHRASINGS[task]
    if isinstance(rng, Plainly):
        phrasing = rng.choice(phrasings[: PLAIN.get(task, FEW)])
    else:
        phrasing = rng.choices(phrasings, [1 + text.count("[") for text in phrasings])[0]
    text = _CHOICE.sub(lambda found: rng.choice(found[1].split("|")), phrasing)
    return text[0].upper() + text[1:]


def pattern(phrasing: str) -> str:
    """A regular expression of all that a phrasing can become; fields stand as ``\\{noun\\}``."""
    parts = _CHOICE.split(phrasing)  # as it stands, and choices, by turns
    return "".join(
        f"(?:{'|'.join(map(re.escape, part.split('|')))})" if choice else re.escape(part)
        for part, choice in zip(parts, cycle((False, True)), strict=False)
    )


def seconds(value: float) -> str:
    """A time as it is written in answers: seconds with one decimal."""
    return f"{value:.1f}"


def span(of: Span) -> str:
    """``<t>1.2-2.5</t>``"""
    return f"<t>{seconds(of.onset)}-{seconds(of.offset)}</t>"


def restyle(question: str, rng: random.Random) -> str:
    """The question as somebody might type it: a lead-in, thanks, other case, no final mark."""
    plainly = isinstance(rng, Plainly)
    if rng.random() < 0.12:
        lead = rng.choice(LEADS[:PLAIN_LEADS] if plainly else LEADS)
        question = lead + (question if lead[-2] in ".!" else question[0].lower() + question[1:])
    if not plainly and rng.random() < 0.04:
        question += rng.choice(ENDS)
    roll = rng.random()
    if roll < 0.25:
        question = question.lower()
    elif roll < 0.28 and "<t>" not in question:
        question = question.upper()
    return question.rstrip("?.") if rng.random() < 0.15 else question


def ask(
    task: str,
    answer: str,
    rng: random.Random,
    label: str = "",
    *,
    phrasing: str = "",
    **fields: str,
) -> Exchange:
    """Phrase a question; ``label``, a class or any other noun, fills ``{noun}``, ``{a}`` and ``{verb}``.

    ``phrasing`` replaces the task's own.
    """
    if label in WORDS:
        noun = rng.choice(WORDS[label].nouns) if rng.random() < 0.3 else WORDS[label].nouns[0]
        verbs = WORDS[label].verbs if rng.random() < 0.6 else ANY_VERB
    else:
        noun, verbs = label, ANY_VERB
    if label:
        fields |= {"noun": noun, "a": article(noun), "verb": rng.choice(verbs)}
    if not phrasing:
        own = f"{task}_{label}"
        as_such = own in PHRASINGS and not isinstance(rng, Plainly) and rng.random() < AS_SUCH
        phrasing = worded(own if as_such else task, rng)
    question = phrasing.format(**fields)
    return Exchange(task, restyle(question, rng), answer)
