"""Word errors: normalisation, and jiwer's counts against the recurrence of the textbook."""

from __future__ import annotations

import numpy as np
import pytest

from afnext.chat import parse_timestamps
from afnext.evaluation.score import Share
from afnext.evaluation.words import normalised, timed_scores, transcript_scores, word_errors
from afnext.training.synthesis.scenes import Utterance
from afnext.training.tasks.speech import transcript


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is half past nine, today!", ["it", "is", "half", "past", "nine", "today"]),
        ("seven o'clock", ["seven", "o'clock"]),
        ("SEVEN O\u2019CLOCK.", ["seven", "o'clock"]),
        ("'quoted' well-known", ["quoted", "well", "known"]),
        ("... \u2014 ''", []),
    ],
)
def test_case_and_punctuation_do_not_count(text: str, words: list[str]) -> None:
    assert normalised(text) == words


def distance(a: list[str], b: list[str]) -> int:
    """Levenshtein's, by its recurrence."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_errors_are_the_edit_distance_of_words() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        truth, found = (
            [("the", "red", "hat", "is", "here")[i] for i in rng.integers(0, 5, rng.integers(0, 9))]
            for _ in range(2)
        )
        errors = word_errors(" ".join(truth), " ".join(found))
        assert errors == (distance(truth, found), len(truth))


def test_a_transcript() -> None:
    scores = transcript_scores("The hat is red.", "the cat is red")
    assert scores == {"wer": Share(1, 4), "word for word": Share(0.0)}
    assert transcript_scores("The hat is red.", "THE HAT IS RED")["word for word"] == Share(1.0)
    assert transcript_scores("The hat.", "")["wer"] == Share(2, 2)


def test_timed_sentences() -> None:
    said = [Utterance("a", "The hat is red.", 1.0, 2.0), Utterance("a", "Call Ben.", 3.0, 4.0)]
    answer = "<t>1.2-2.0</t> The hat is red.\n<t>3.3-4.0</t> Call Jen."
    scores = timed_scores(said, parse_timestamps(answer, "seconds"))
    assert scores["wer"] == Share(1, 6)
    assert scores["f1"] == Share(2, 4)  # the second is 0.3 s late
    perfect = "\n".join(f"<t>{u.onset}-{u.offset}</t> {u.text}" for u in said)
    scores = timed_scores(said, parse_timestamps(perfect, "seconds"))
    assert (scores["wer"], scores["f1"]) == (Share(0, 6), Share(4, 4))
    nothing = timed_scores(said, parse_timestamps(transcript(()), "seconds"))
    assert (nothing["wer"], nothing["recall"]) == (Share(6, 6), Share(0, 2))
