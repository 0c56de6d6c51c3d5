"""What is asked: true answers are right, and nothing is asked in training's words that should be unseen."""

from __future__ import annotations

import random
import re
from itertools import product

import pytest

from afnext.evaluation.held_out import GROUPS, HeldOut
from afnext.evaluation.questions import UNSEEN, Asker, about_two, pairs
from afnext.evaluation.score import Errors, Scores, Share
from afnext.evaluation.suite import questions
from afnext.training import tasks
from afnext.training.synthesis.labels import NO_SAMPLES
from afnext.training.synthesis.scenes import Event, Scene
from afnext.training.tasks import music, several, sounds, speech
from afnext.training.tasks.exchange import PHRASINGS, pattern

pytestmark = pytest.mark.slow

LOW = ("wer", "cpwer")  # measures of which 0 is the best


def perfect(scores: Scores) -> bool:
    for measure, part in scores.items():
        if isinstance(part, Errors):
            if max(part.values, default=0.0) > 0.051:  # rounding to tenths
                return False
        elif isinstance(part, Share) and part.part != (0 if measure in LOW else part.whole):
            return False
    return True


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "brief sounds"])
def test_true_answers_of_training_are_perfect(few: HeldOut, group: str) -> None:
    seen = set()
    for key, scene in few.scenes(group):
        rng = random.Random(key)
        asker = Asker(key, scene, rng)
        for task in (*sounds.MAKERS, *speech.MAKERS, *music.MAKERS):
            for _ in range(5):
                if exchange := asker.draw(task):
                    scores = asker.judge(exchange)(exchange.answer)
                    assert perfect(scores), (exchange, scores)
                    assert not perfect(asker.judge(exchange)("?!")), exchange
                    seen.add(exchange.task)
    assert len(seen) > 10


def test_true_answers_about_two_are_right(few: HeldOut) -> None:
    rng = random.Random(0)
    seen = set()
    for keys, scenes in pairs(few.scenes("brief sounds"), rng):
        for _ in range(5):
            state = rng.getstate()
            asked = list(about_two(keys, scenes, rng))
            rng.setstate(state)
            first, second = map(tasks.timeline, scenes)
            made = [make(first, second, rng) for _, make in several.MAKERS.values()]
            for question, exchange in zip(asked, filter(None, made), strict=True):
                assert question.text == exchange.question
                assert perfect(question.judge(exchange.answer))
                seen.add((exchange.task, exchange.answer.split()[-1]))
    assert {("same_sounds", "Yes."), ("same_sounds", "No.")} <= seen


def test_each_recording_is_in_one_pair(few: HeldOut) -> None:
    found = [key for keys, _ in pairs(few.scenes("brief sounds"), random.Random(0)) for key in keys]
    assert len(set(found)) == len(found) > 0


def test_recordings_without_sounds_are_no_pair_of_the_same() -> None:
    silent, bell = Scene(NO_SAMPLES), Scene(NO_SAMPLES, (Event("bell", 0.0, 1.0),))
    recordings = [(str(i), scene) for i, scene in enumerate((silent, silent, bell, bell))]
    found = list(pairs(recordings, random.Random(0)))
    assert [scenes for _, scenes in found] == [(bell, bell), (silent, silent)]
    assert not list(pairs(recordings[:2], random.Random(0)))


def test_unseen_phrasings_are_not_trained() -> None:
    for task, phrasings in UNSEEN.items():
        for phrasing, trained in product(phrasings, PHRASINGS[task]):
            same = re.fullmatch(pattern(trained.rstrip("?.")), phrasing.rstrip("?."), re.IGNORECASE)
            assert not same, (phrasing, trained)


def test_every_kind_of_training_is_asked(few: HeldOut) -> None:
    asked = {q.kind.partition(",")[0] for q in questions(few)}
    exchanged = set(tasks.TASKS) - {"list", "neighbour", "pair"}
    assert exchanged | {"events", "after", "before", "which_first", "is_before"} <= asked
    assert {"search", "follow-up"} <= asked


def test_questions_are_the_same_each_time_whatever_the_limit(few: HeldOut) -> None:
    def texts(limit: int | None) -> list[tuple[str, tuple[str, ...], str]]:
        return [(q.kind, q.sounds, q.text) for q in questions(few, limit)]

    assert texts(None) == texts(None)
    # Pairs are drawn from a list of their own.
    assert set(texts(1)) < set(texts(None))
