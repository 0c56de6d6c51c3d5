"""The score of a model on held-out synthesised clips, through its folder on disk.

Every score stands beside chance: the same answers, dealt to other clips of the same length.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from afnext.evaluation.events import TOLERANCE, EventScore, parse_events
from afnext.evaluation.generate import Listener
from afnext.model import AudioLanguageModel
from afnext.training.data import Vocabulary
from afnext.training.lexicon import UNHEARD
from afnext.training.synthesis import CLASSES, ClipSet, Event, open_clips
from afnext.training.tasks import MAKERS, QUESTIONS, Exchange, article, restyle

BATCH = 20
UNSEEN = {
    "list": (
        "Can you tell me which sounds occur in this file and when?",
        "What's in this audio?",
        "Which noises do you notice, and at what time?",
        "I need all sounds with start and end.",
    ),
    "when": (
        "Could you tell me when the {noun} can be heard?",
        "At which second does the {noun} begin?",
        "When exactly is the {noun} audible?",
        "I am looking for the {noun}. When is it?",
    ),
    "presence": (
        "Do you notice {a}?",
        "Is {a} part of this recording?",
        "Did you hear {a} anywhere?",
        "Would you say there is {a} here?",
    ),
}
"""Phrasings that training never uses."""
_TIME = re.compile(r"<t>(\d+\.\d)")


@dataclass(frozen=True)
class Question:
    """``right`` says whether an answer to it is right."""

    kind: str
    text: str
    right: Callable[[str], bool]


def _listing(events: Sequence[Event], rng: random.Random) -> str:
    return restyle(rng.choice(QUESTIONS["list"]), rng)


def _presence(kind: str, noun: str, answer: str, rng: random.Random) -> Question:
    text = rng.choice(QUESTIONS["presence"]).format(noun=noun, a=article(noun), verb="sound")
    return Question(kind, restyle(text, rng), lambda a: a == answer)


def _made(task: str, events: Sequence[Event], rng: random.Random) -> Question | None:
    exchange: Exchange | None = MAKERS[task][1](events, rng)
    if exchange is None:
        return None
    truth = exchange.answer

    def right(answer: str) -> bool:
        times = [float(t) for t in _TIME.findall(truth)]
        return _on_time(times, answer) if times else answer == truth

    def total(answer: str) -> bool:
        return answer.rstrip(".").split(": ")[-1] == truth.rstrip(".").split(": ")[-1]

    return Question(exchange.task, exchange.question, total if "count" in task else right)


def _unseen(events: Sequence[Event], absent: str, rng: random.Random) -> list[Question]:
    """Yes or no, present and absent, and when, in words that training never uses."""
    asked = []
    present = rng.choice(events).label if events else None
    for kind, noun, answer in (("absent", absent, "No."), ("present", present, "Yes.")):
        if noun:
            text = rng.choice(UNSEEN["presence"]).format(a=article(noun))
            right = partial(str.__eq__, answer)
            asked.append(Question(f"presence, {kind}, unseen phrasing", text, right))
    if present:
        truth = [e.onset for e in events if e.label == present]
        text = rng.choice(UNSEEN["when"]).format(noun=present)
        asked.append(Question("when, unseen phrasing", text, partial(_on_time, truth)))
    return asked


def _on_time(truth: Sequence[float], answer: str) -> bool:
    """As many times as there are onsets, each within the tolerance."""
    found = [float(t) for t in _TIME.findall(answer)]
    return len(found) == len(truth) and all(
        abs(a - b) <= TOLERANCE for a, b in zip(truth, found, strict=True)
    )


def questions_about(events: Sequence[Event], rng: random.Random) -> list[Question]:
    """One question of each kind that this clip allows."""
    present = sorted({e.label for e in events})
    absent = rng.choice([c for c in CLASSES if c not in present])
    asked = [
        *_unseen(events, absent, rng),
        _presence("presence, absent", absent, "No.", rng),
        _presence("presence, never trained as a sound", rng.choice(UNHEARD), "No.", rng),
    ]
    if present:
        asked.append(_presence("presence, present", rng.choice(present), "Yes.", rng))
    makers = ("when", "count", "count_of", "first", "last", "neighbour", "pair", "at", "caption")
    asked += [q for task in makers if (q := _made(task, events, rng))]
    return asked


def evaluate(
    folder: str | Path, clips: Sequence[ClipSet], limit: int | None = None
) -> dict[str, Any]:
    """Scores by clip length and by kind of question; shares in 0..1, times in seconds."""
    net = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    vocab = Vocabulary(Tokenizer.from_file(str(Path(folder) / "tokenizer.json")))
    lists: dict[str, EventScore] = defaultdict(EventScore)
    replies: dict[str, list[tuple[Question, str]]] = defaultdict(list)
    for clip_set in clips:
        rng = random.Random(round(clip_set.seconds * 1000))
        size = min(len(clip_set), limit or len(clip_set))
        group = "2-10 s" if clip_set.seconds <= 10 else f"{clip_set.seconds:g} s"
        for first in range(0, size, BATCH):
            rows = range(first, min(size, first + BATCH))
            events = [clip_set.events[i] for i in rows]
            listener = Listener(net, vocab, np.stack([clip_set.samples[i] for i in rows]))
            answers = [parse_events(a) for a in listener.ask([_listing(e, rng) for e in events])]
            unseen = listener.ask([rng.choice(UNSEEN["list"]) for _ in events])
            for name, dealt in (
                (group, answers),
                (f"{group}, chance", answers[1:] + answers[:1]),
                (f"{group}, unseen phrasing", [parse_events(a) for a in unseen]),
            ):
                for truth, found in zip(events, dealt, strict=True):
                    lists[name].add(truth, found)
            asked = [questions_about(e, rng) for e in events]
            lengths = "2-10 s" if clip_set.seconds <= 10 else "longer"
            for turn in range(max(map(len, asked))):
                questions = [a[min(turn, len(a) - 1)] for a in asked]
                for row, reply in enumerate(listener.ask([q.text for q in questions], 60)):
                    if turn < len(asked[row]):
                        replies[lengths].append((questions[row], reply))
    return {
        "listing": {k: v.summary() for k, v in lists.items()},
        "questions": {k: _scores(v) for k, v in replies.items()},
        "silence": _silence(net, vocab),
    }


def _scores(replies: Sequence[tuple[Question, str]]) -> dict[str, dict[str, float]]:
    """For each kind how many were asked, the share right, and that of replies dealt anew.

    Replies are dealt among the questions that begin with the same word: all on presence, for example,
    so that a model which always says no is right by chance on everything absent.
    """
    rng = random.Random(0)
    families: dict[str, list[str]] = defaultdict(list)
    for question, reply in replies:
        families[question.kind.split(",")[0]].append(reply)
    for family in families.values():
        rng.shuffle(family)
    right: dict[str, list[bool]] = defaultdict(list)
    dealt: dict[str, list[bool]] = defaultdict(list)
    for question, reply in replies:
        right[question.kind].append(question.right(reply))
        dealt[question.kind].append(question.right(families[question.kind.split(",")[0]].pop()))
    return {
        kind: {
            "asked": len(scores),
            "right": sum(scores) / len(scores),
            "chance": sum(dealt[kind]) / len(scores),
        }
        for kind, scores in sorted(right.items())
    }


def _silence(net: AudioLanguageModel, vocab: Vocabulary) -> dict[str, Any]:
    """What is heard in digital silence: nothing should be."""
    rng = random.Random(1)
    listener = Listener(net, vocab, np.zeros((len(CLASSES), 5 * 16_000), np.int16))
    lists = listener.ask([rng.choice(QUESTIONS["list"]) for _ in CLASSES])
    yes_no = listener.ask([f"Is there {article(c)}?" for c in CLASSES])
    return {
        "lists_that_say_nothing": sum(a == "Nothing." for a in lists) / len(lists),
        "absent_right": sum(a == "No." for a in yes_no) / len(yes_no),
    }


if __name__ == "__main__":
    folder, data = sys.argv[1:3]
    limit = int(sys.argv[3]) if len(sys.argv) > 3 else None
    print(json.dumps(evaluate(folder, open_clips(data), limit), indent=2))
