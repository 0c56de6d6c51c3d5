"""Short answers: what is right, what is wrong, however it is worded."""

from __future__ import annotations

import pytest

from afnext.evaluation import answers
from afnext.evaluation.score import Share
from afnext.training.tasks.music import LOUDNESS, pace
from afnext.training.tasks.refusal import ANSWER

RIGHT, WRONG = {"right": Share(1.0)}, {"right": Share(0.0)}


@pytest.mark.parametrize(
    ("task", "truth", "right", "wrong"),
    [
        ("presence", "Yes.", ["Yes.", "yes, there is one"], ["No.", "", "Bell.", "It is not, yes."]),
        ("presence", "No.", ["No.", "No, nothing."], ["Yes.", "", "Nothing."]),
        ("count", "bell, dog: 2.", ["bell, dog: 2.", "2.", "2", "Two."], ["bell: 1.", "", "bell, dog."]),
        ("count", "0.", ["0.", "None."], ["1.", ""]),
        ("count_of", "<t>1.0-2.0</t>, <t>3.0-4.0</t>: 2.", ["<t>5.0-7.0</t>: 2.", "2."],
         ["<t>2.0-2.0</t>: 1."]),
        ("speakers", "Two.", ["Two.", "2 people"], ["Three.", "Nobody."]),
        ("first", "dog.", ["dog.", "A dog."], ["cat.", "dog, cat.", ""]),
        ("after", "Nothing.", ["Nothing."], ["", "dog."]),
        ("at", "dog, bell.", ["bell, dog.", "A dog and a bell."], ["dog.", "dog, bell, cat.", "Nothing."]),
        ("caption", "A bell rings, then a dog barks.", ["A dog barks, while a bell rings."],
         ["A bell rings.", "A bell rings, then a bell rings.", ""]),
        ("caption", "Nothing happens.", ["Nothing happens."], ["", "A bell rings."]),
        ("instrument", "Piano.", ["Piano.", "a piano"], ["Harp.", "Piano, harp.", ""]),
        ("instrument", "Piano, harp.", ["Harp, piano."], ["Piano."]),
        ("which_has", "The first.", ["The first.", "In the first recording."],
         ["The second.", "The first or the second.", ""]),
        ("interrupted", "No.", ["No."], ["Yes."]),
        ("refusal", ANSWER, [ANSWER, "I can't help with this."], ["Ann.", "", "I cannot hear."]),
        ("transcribe", "No speech was recognised.", ["no speech was recognised"], ["", "Hello."]),
        *(("loudness", text, [text, text.upper()], ["", *(t for t in LOUDNESS.values() if t != text)])
          for text in LOUDNESS.values()),
    ],
)  # fmt: skip
def test_short_answers(task: str, truth: str, right: list[str], wrong: list[str]) -> None:
    judge = answers.judge(task, truth)
    for answer in right:
        assert judge(answer) == RIGHT, answer
    for answer in wrong:
        assert judge(answer) == WRONG, answer


def test_times_must_be_as_many_and_near() -> None:
    judge = answers.when([1.2, 5.0])
    assert judge("At <t>1.4-2.4</t>, <t>4.8-5.5</t>.") == RIGHT
    assert judge("At <t>4.8-5.5</t>, <t>1.4-2.4</t>.") == RIGHT
    for answer in (
        "At <t>1.4-2.4</t>.",
        "At <t>1.5-2.4</t>, <t>4.8-5.5</t>.",
        "There is no bell.",
        "",
    ):
        assert judge(answer) == WRONG, answer
    assert answers.when([60.0], 1.0)("At <t>59.1-62.0</t>.") == RIGHT


def test_of_what_is_absent_no_time_is_right() -> None:
    judge = answers.when([])
    assert judge("There is no bell.") == RIGHT
    for answer in ("At <t>1.4-2.4</t>.", "", "Bell.", "Not at <t>1.4-2.4</t>."):
        assert judge(answer) == WRONG, answer


def test_tempo_within_a_tenth() -> None:
    judge = answers.tempo(100)
    for tempo, expected in ((100, RIGHT), (90, RIGHT), (110, RIGHT), (85, WRONG), (115, WRONG)):
        assert judge(pace(tempo)) == expected
    assert judge("Slow.") == WRONG
