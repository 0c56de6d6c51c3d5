"""Short answers: what an answer says, however it is worded, and whether that is the truth.

The forms are those that training teaches (:mod:`afnext.training.tasks`); a model that says the same in more
words is right too where that can be told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from afnext.evaluation.events import TOLERANCE
from afnext.evaluation.score import Scores, right
from afnext.evaluation.words import normalised
from afnext.training.tasks.lexicon import WORDS

TEMPO = 0.1  # of the true tempo that an answer may be off

_TIME = re.compile(r"<t>(\d+(?:\.\d+)?)")
_NUMBERS = {
    word: n
    for n, word in enumerate(("nobody", "one", "two", "three", "four", "five", "six", "seven"))
} | {"none": 0, "no": 0, "zero": 0, "eight": 8, "nine": 9, "ten": 10}  # fmt: skip
_NO = {"no", "not", "never", "nothing", "nowhere"}
_REFUSAL = re.compile(r"\b(?:cannot|can't|can not|won't|unable to) (?:help|assist|do|answer)\b")

Judge = Callable[[str], Scores]
"""What an answer scores."""


def judge(task: str, truth: str) -> Judge:
    """Of answers to a question of a kind of task, whose true answer is ``truth``.

    Raises:
        KeyError: answers to the kind are no short answers.
    """
    return partial(_compare, _SAYS[task], _SAYS[task](truth))


def _compare(says: Callable[[str], object], truth: object, answer: str) -> Scores:
    return right(says(answer) == truth)


def yes_or_no(answer: str) -> str:
    """``"yes"``, ``"no"``, or "" for an answer that begins otherwise."""
    first = next(iter(normalised(answer)), "")
    return first if first in ("yes", "no") else ""


def verdict(answer: str) -> str:
    """``"yes"``, ``"no"``, or "" for an answer that ends otherwise."""
    last = next(reversed(normalised(answer)), "")
    return last if last in ("yes", "no") else ""


def number(answer: str) -> int | None:
    """The last number outside of times: ``bell, dog: 2.`` is 2; None where there is none."""
    words = normalised(re.sub(r"<t>.*?</t>", " ", answer))
    found = [int(w) if w.isdecimal() else _NUMBERS.get(w) for w in words]
    return next((n for n in reversed(found) if n is not None), None)


def names(answer: str) -> Counter[str]:
    """What is listed, in any order."""
    parts = re.split(r",|\band\b", re.sub(r"<t>.*?</t>", " ", answer.lower()))
    listed = (re.sub(r"^(?:an?|the) ", "", " ".join(normalised(part))) for part in parts)
    return Counter(filter(None, listed))


def described(answer: str) -> Counter[str]:
    """The classes of a caption's clauses; a clause that is none of the lexicon's counts as itself."""
    known = {" ".join(normalised(word.sentence)): label for label, word in WORDS.items()}
    clauses = re.split(r",\s*(?:then|while|and)\s+|,\s*", answer.strip().rstrip("."))
    said = (" ".join(normalised(clause)) for clause in clauses)
    return Counter(known.get(c, c) for c in said if c)


def times(answer: str) -> list[float]:
    """Where each time span of an answer begins, in seconds."""
    return [float(t) for t in _TIME.findall(answer)]


def refuses(answer: str) -> bool:
    return bool(_REFUSAL.search(" ".join(normalised(answer))))


def change(answer: str) -> str:
    """``"steady"``, ``"louder"`` or ``"softer"``, or ""."""
    text = " ".join(normalised(answer))
    signs = {"louder": "louder|crescendo", "softer": "softer|quieter|diminuendo|decrescendo"}
    found = [key for key, pattern in signs.items() if re.search(rf"\b(?:{pattern})\b", text)]
    if found:
        return found[0] if len(found) == 1 else ""
    return "steady" if "same" in text or "steady" in text else ""


def speech(answer: str) -> str:
    return " ".join(normalised(answer))


def which(answer: str) -> str:
    """Of two recordings: ``"first"``, ``"second"``, ``"both"``, ``"neither"``, or "" for no or several."""
    found = {w for w in normalised(answer) if w in ("first", "second", "both", "neither")}
    return found.pop() if len(found) == 1 else ""


_SAYS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("presence", "is_before", "instrument_presence"), yes_or_no),
    "interrupted": yes_or_no,
    **dict.fromkeys(("same_sounds", "in_both"), verdict),
    **dict.fromkeys(("count", "count_of", "speakers"), number),
    **dict.fromkeys(("first", "last", "after", "before", "which_first", "at", "instrument"), names),
    **dict.fromkeys(("which_has", "more"), which),
    "caption": described,
    "loudness": change,
    "refusal": refuses,
    "transcribe": speech,
}


def on_time(truth: Sequence[float], tolerance: float, answer: str) -> Scores:
    """Right with as many times as there are, each within ``tolerance`` seconds; of none, with a no."""
    found = sorted(times(answer))
    if not truth:
        return right(not found and not _NO.isdisjoint(normalised(answer)))
    return right(
        len(found) == len(truth)
        and all(abs(a - b) <= tolerance + 1e-9 for a, b in zip(sorted(truth), found, strict=True))
    )


def when(truth: Sequence[float], tolerance: float = TOLERANCE) -> Judge:
    """Of answers to "When ..?", where something begins at these times."""
    return partial(on_time, tuple(truth), tolerance)


def tempo(truth: float) -> Judge:
    """Of answers with beats a minute, right within a tenth."""

    def judged(answer: str) -> Scores:
        said = number(answer)
        return right(said is not None and abs(said - truth) <= TEMPO * truth)

    return judged
