"""Who speaks when, whatever the speakers are called."""

from __future__ import annotations

import random

import pytest

from afnext.chat import parse_timestamps
from afnext.evaluation.score import Share
from afnext.evaluation.turns import attributed_scores, parse_turns, true_turns, turn_scores
from afnext.training.synthesis.scenes import Utterance
from afnext.training.tasks.speech import MAKERS

SAID = [
    Utterance("ann", "The hat is red.", 0.5, 2.0),
    Utterance("bob", "Call Ben.", 2.4, 3.5),
    Utterance("ann", "Where is it?", 4.0, 5.0),
]
TRUTH = true_turns(SAID)


def diarized(answer: str) -> dict[str, Share]:
    return dict(turn_scores(TRUTH, parse_turns(parse_timestamps(answer, "seconds"))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "hits", "found"),
    [
        ("Speaker 1 <t>0.5-2.0</t>, Speaker 2 <t>2.4-3.5</t>, Speaker 1 <t>4.0-5.0</t>.", 3, 3),
        ("Speaker 2 <t>0.5-2.0</t>, Speaker 1 <t>2.4-3.5</t>, Speaker 2 <t>4.0-5.0</t>.", 3, 3),
        ("Speaker 1 <t>0.9-2.0</t>, Speaker 2 <t>3.0-3.5</t>, Speaker 1 <t>4.0-5.0</t>.", 2, 3),
        ("Speaker 1 <t>0.5-2.0</t>, Speaker 1 <t>2.4-3.5</t>, Speaker 1 <t>4.0-5.0</t>.", 2, 3),
        ("Speaker 1 <t>0.5-2.0</t>, Speaker 2 <t>2.4-3.5</t>, Speaker 3 <t>4.0-5.0</t>.", 2, 3),
        ("Speaker 2 <t>2.4-3.5</t>, Speaker 1 <t>4.0-5.0</t>.", 2, 2),
        ("No speech was recognised.", 0, 0),
    ],
    ids=[
        "as they speak",
        "swapped",
        "one late",
        "all one",
        "one too many",
        "first missing",
        "nobody",
    ],
)
def test_turns(answer: str, hits: int, found: int) -> None:
    scores = diarized(answer)
    assert scores["f1"] == Share(2 * hits, 3 + found)
    assert (scores["precision"], scores["recall"]) == (Share(hits, found), Share(hits, 3))


def test_words_go_with_their_speaker() -> None:
    right, swapped, joined = (
        "\n".join(
            f"<t>{u.onset}-{u.offset}</t> Speaker {n}: {u.text}"
            for u, n in zip(SAID, numbers, strict=True)
        )
        for numbers in ((1, 2, 1), (2, 1, 2), (1, 1, 1))
    )
    for answer, errors in ((right, 0), (swapped, 0), (joined, 4)):
        turns = parse_turns(parse_timestamps(answer, "seconds"))
        # Two words that Bob says are missing where he is looked for, and too many where Ann is.
        assert attributed_scores(TRUTH, turns)["cpwer"] == Share(errors, 9), answer


def test_true_answers_of_training_are_perfect() -> None:
    for task, score in (("diarize", turn_scores), ("attribute", attributed_scores)):
        exchange = MAKERS[task][1](SAID, random.Random(0))
        assert exchange is not None
        scores = score(TRUTH, parse_turns(parse_timestamps(exchange.answer, "seconds")))
        assert scores["f1"] == Share(6, 6)


def test_an_answer_with_a_dozen_speakers_is_scored() -> None:
    answer = ", ".join(f"Speaker {i} <t>{i}.0-{i}.5</t>" for i in range(12)) + "."
    assert diarized(answer)["precision"].whole == 12
