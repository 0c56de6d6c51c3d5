"""Notes of a melody."""

from __future__ import annotations

from afnext.evaluation.notes import note_scores, parse_notes
from afnext.evaluation.score import Share
from afnext.training.synthesis.music import Melody, Note
from afnext.training.synthesis.scenes import Event
from afnext.training.tasks import music

PLAYED = (Note(60, 0.449, 0.9), Note(61, 0.96, 1.4), Note(64, 1.5, 2.0))


def test_notes_are_read() -> None:
    assert parse_notes("C4 <t>0.4</t>, C#4 <t>1.0</t>. H2 <t>3.0</t>, E#4 <t>3.0</t>") == [
        Event("C4", 0.4, 0.4), Event("C#4", 1.0, 1.0),
    ]  # fmt: skip


def test_the_true_answer_is_perfect_though_it_is_rounded() -> None:
    answer = music.notes(Melody("piano", PLAYED, 100, "steady"))
    assert note_scores(PLAYED, parse_notes(answer))["f1"] == Share(6, 6)


def test_pitch_and_onset_count() -> None:
    scores = note_scores(PLAYED, parse_notes("C4 <t>0.54</t>, D4 <t>1.0</t>, E4 <t>1.61</t>."))
    assert scores["f1"] == Share(2, 6)
    assert scores["onset f1"] == Share(4, 6)
