"""Who speaks when: turns of an answer against the truth, whatever the speakers are called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

from afnext.chat import Segment
from afnext.evaluation.events import on_time
from afnext.evaluation.score import Scores, Share
from afnext.evaluation.words import word_errors
from afnext.training.synthesis.scenes import Utterance

TOLERANCE = 0.5
"""A turn is right if its speaker is, and its onset lies within this many seconds."""
MOST_SPEAKERS = 5  # that are told apart in an answer: those with the most turns


@dataclass(frozen=True, slots=True)
class TurnOf:
    """``label`` is the speaker; ``text`` what is said, where that is known."""

    label: str
    onset: float
    text: str = ""


def true_turns(utterances: Sequence[Utterance]) -> list[TurnOf]:
    return [TurnOf(u.speaker, u.onset, u.text) for u in utterances]


def parse_turns(segments: Sequence[Segment]) -> list[TurnOf]:
    """Turns of an answer's segments: ``Speaker 1 <t>0.5-2.1</t>`` or ``<t>0.5-2.1</t> Speaker 1: Hello.``"""
    found = []
    for segment in segments:
        if segment.speaker is not None:
            found.append(TurnOf(_name(segment.speaker), segment.start, segment.text))
        elif name := re.match(r"speaker[ _]?\w+", segment.text, re.IGNORECASE):
            found.append(TurnOf(_name(name[0]), segment.start))
    return found


def turn_scores(truth: Sequence[TurnOf], found: Sequence[TurnOf]) -> Scores:
    """Precision, recall and F1 of turns, speakers named as suits the answer best."""
    hits = best(truth, found, lambda renamed: on_time(truth, renamed, TOLERANCE))
    return {
        "f1": Share(2 * hits, len(truth) + len(found)),
        "precision": Share(hits, len(found)),
        "recall": Share(hits, len(truth)),
    }


def attributed_scores(truth: Sequence[TurnOf], found: Sequence[TurnOf]) -> Scores:
    """As ``turn_scores``, with word errors of each speaker's words, named as suits best (CHiME-6's cpWER)."""

    def errors(renamed: Sequence[TurnOf]) -> int:
        names = dict.fromkeys(t.label for t in (*truth, *renamed))
        return sum(word_errors(_said(truth, n), _said(renamed, n))[0] for n in names)

    least = -best(truth, found, lambda renamed: -errors(renamed))
    words = word_errors(" ".join(t.text for t in truth), "")[1]
    return {"cpwer": Share(least, words), **turn_scores(truth, found)}


def best(
    truth: Sequence[TurnOf], found: Sequence[TurnOf], value: Callable[[list[TurnOf]], int]
) -> int:
    """The largest value over all ways to give found speakers the names of true ones, or none of them."""
    true = list(dict.fromkeys(t.label for t in truth))
    heard = [name for name, _ in Counter(f.label for f in found).most_common(MOST_SPEAKERS)]
    names = true + [f"nobody {i}" for i in range(len(heard) - len(true))]
    values = []
    for chosen in permutations(names, len(heard)):
        renamed = dict(zip(heard, chosen, strict=True))
        values.append(
            value([TurnOf(renamed.get(f.label, "nobody"), f.onset, f.text) for f in found])
        )
    return max(values)


def _said(turns: Sequence[TurnOf], speaker: str) -> str:
    return " ".join(t.text for t in turns if t.label == speaker)


def _name(text: str) -> str:
    return re.sub(r"[ _]+", " ", text.lower())
