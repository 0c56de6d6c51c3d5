"""Figures: sums, medians, intervals and chance."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest

from afnext.evaluation.score import Answered, Errors, Scores, Share, deal, figures, right


def compare(truth: str, answer: str) -> Scores:
    return right(answer == truth)


def yes_no(count: int, yes: int, answer: str) -> list[Answered]:
    """A model that always says the same about ``count`` recordings, ``yes`` of which are a yes."""
    return [
        Answered(
            f"presence, {'present' if i < yes else 'absent'}", "presence", f"recording {i}", answer,
            partial(compare, "Yes." if i < yes else "No."),
        )
        for i in range(count)
    ]  # fmt: skip


def test_always_no_is_no_better_than_chance() -> None:
    found = figures(yes_no(40, 20, "No."))
    assert found["presence, absent"]["right"].value == 1
    assert found["presence, absent"]["right"].chance == 1
    assert found["presence, present"]["right"].value == 0


def test_perfect_answers_stand_beside_the_share_of_such_answers() -> None:
    truths = ["Yes."] * 100 + ["No."] * 300
    answered = [
        Answered("presence", "presence", str(i), t, partial(compare, t))
        for i, t in enumerate(truths)
    ]
    figure = figures(answered)["presence"]["right"]
    assert figure.value == 1
    expected = 0.25**2 + 0.75**2
    # 1,600 draws: a standard deviation of 0.012.
    assert figure.chance == pytest.approx(expected, abs=0.05)


def test_answers_are_dealt_to_other_recordings_of_their_family() -> None:
    rng = random.Random(0)
    answered = [
        Answered("k", "ab"[i % 2], f"{i % 2}{i // 6}", f"{i % 2}{i // 6}", partial(compare, ""))
        for i in range(60)
    ]
    for item, dealt in zip(answered, deal(answered, rng), strict=True):
        assert dealt
        assert all(d[0] == item.recording[0] and d != item.recording for d in dealt)
    assert deal(answered[:1], rng) == [[]]


def test_shares_are_of_sums_not_means_of_shares() -> None:
    scores = [Share(1, 2), Share(0, 8)]
    answered = [Answered("wer", "wer", str(i), str(i), _nth(scores)) for i in range(2)]
    assert figures(answered)["wer"]["wer"].value == pytest.approx(0.1)


def _nth(scores: list[Share]):  # type: ignore[no-untyped-def]
    return lambda answer: {"wer": scores[int(answer)]}


def test_intervals_are_those_of_a_binomial() -> None:
    rng = np.random.default_rng(1)
    truths = rng.random(200) < 0.8
    answered = [
        Answered("k", "k", str(i), "x", partial(compare, "x" if t else "y"))
        for i, t in enumerate(truths)
    ]
    figure = figures(answered)["k"]["right"]
    deviation = np.sqrt(figure.value * (1 - figure.value) / 200)
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert figure.low < figure.value < figure.high


def test_recordings_are_drawn_not_questions() -> None:
    """Ten questions about each of 20 recordings, all right or all wrong: the interval of 20, not of 200."""
    rng = np.random.default_rng(2)
    truths = rng.random(20) < 0.5
    answered = [
        Answered("k", "k", str(i), "x", partial(compare, "x" if t else "y"))
        for i, t in enumerate(truths)
        for _ in range(10)
    ]
    figure = figures(answered)["k"]["right"]
    assert (figure.questions, figure.recordings) == (200, 20)
    deviation = np.sqrt(figure.value * (1 - figure.value) / 20)
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * deviation, rel=0.3)


def test_medians_and_their_intervals() -> None:
    rng = np.random.default_rng(3)
    errors = [tuple(rng.exponential(0.1, rng.integers(0, 5)).tolist()) for _ in range(60)]
    answered = [
        Answered("k", "k", str(i), str(i), lambda a: {"onset error": Errors(errors[int(a)])})
        for i in range(60)
    ]
    figure = figures(answered)["k"]["onset error"]
    every = sorted(e for own in errors for e in own)
    assert figure.value in (every[(len(every) - 1) // 2], every[len(every) // 2])
    assert (
        every[len(every) // 4] < figure.low < figure.value < figure.high < every[-len(every) // 4]
    )


def test_nothing_found_is_zero() -> None:
    answered = [
        Answered("k", "k", str(i), "", lambda _: {"precision": Share(0, 0), "e": Errors(())})
        for i in range(3)
    ]
    found = figures(answered)["k"]
    assert (found["precision"].value, found["e"].value) == (0, 0)
    assert found["precision"].to_dict()["questions"] == 3
