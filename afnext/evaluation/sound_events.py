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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from afnext.evaluation.events import EventScore, parse_events
from afnext.evaluation.generate import Listener
from afnext.model import AudioLanguageModel
from afnext.training.data import Vocabulary
from afnext.training.lexicon import UNHEARD
from afnext.training.synthesis import CLASSES, ClipSet, Event, open_clips
from afnext.training.tasks import MAKERS, QUESTIONS, Exchange, article, restyle

BATCH = 20
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
        times, found = _TIME.findall(truth), _TIME.findall(answer)
        if not times:
            return answer == truth
        return len(times) == len(found) and all(
            abs(float(a) - float(b)) <= 0.25 for a, b in zip(times, found, strict=True)
        )

    def total(answer: str) -> bool:
        return answer.rstrip(".").split(": ")[-1] == truth.rstrip(".").split(": ")[-1]

    return Question(exchange.task, exchange.question, total if "count" in task else right)


def questions_about(events: Sequence[Event], rng: random.Random) -> list[Question]:
    """One question of each kind that this clip allows."""
    present = sorted({e.label for e in events})
    asked = [
        _presence(
            "presence, absent", rng.choice([c for c in CLASSES if c not in present]), "No.", rng
        ),
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
    rng = random.Random(0)
    lists: dict[str, EventScore] = defaultdict(EventScore)
    kinds: dict[str, list[bool]] = defaultdict(list)
    chance: dict[str, list[bool]] = defaultdict(list)
    for clip_set in clips:
        size = min(len(clip_set), limit or len(clip_set))
        group = "2-10 s" if clip_set.seconds <= 10 else f"{clip_set.seconds:g} s"
        for first in range(0, size, BATCH):
            rows = range(first, min(size, first + BATCH))
            events = [clip_set.events[i] for i in rows]
            listener = Listener(net, vocab, np.stack([clip_set.samples[i] for i in rows]))
            answers = [parse_events(a) for a in listener.ask([_listing(e, rng) for e in events])]
            for name, dealt in ((group, answers), (f"{group}, chance", answers[1:] + answers[:1])):
                for truth, found in zip(events, dealt, strict=True):
                    lists[name].add(truth, found)
            asked = [questions_about(e, rng) for e in events]
            for turn in range(max(map(len, asked))):
                questions = [a[min(turn, len(a) - 1)] for a in asked]
                replies = listener.ask([q.text for q in questions], 60)
                for row, (question, all_asked) in enumerate(zip(questions, asked, strict=True)):
                    if turn < len(all_asked):
                        key = (
                            f"{question.kind} ({'2-10 s' if clip_set.seconds <= 10 else 'longer'})"
                        )
                        kinds[key].append(question.right(replies[row]))
                        chance[key].append(question.right(replies[row - 1]))
    return {
        "listing": {k: v.summary() for k, v in lists.items()},
        "questions": {
            k: {
                "asked": len(v),
                "right": sum(v) / len(v),
                "chance": sum(chance[k]) / len(chance[k]),
            }
            for k, v in sorted(kinds.items())
        },
        "silence": _silence(net, vocab),
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
