"""Matching events: hand-made cases, and an independent matcher from SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from afnext.evaluation.events import event_scores, match, on_time, parse_events
from afnext.evaluation.score import Errors, Share
from afnext.training.synthesis.scenes import Event


def random_events(rng: np.random.Generator, spread: float) -> list[Event]:
    times = rng.uniform(0, spread, rng.integers(0, 7))
    return [Event("ab"[rng.integers(2)], t, t + 1) for t in times]


def test_answers_are_read() -> None:
    text = "Bell <t>1.2-2.5</t>, siren <t>3-4.25</t>. And <t>9.0-9.1</t>, horn."
    assert parse_events(text)[:2] == [Event("bell", 1.2, 2.5), Event("siren", 3.0, 4.25)]
    assert parse_events("Nothing.") == []
    assert parse_events("bell <t>1.2-</t>") == []


def test_scores_of_a_hand_made_case() -> None:
    truth = [Event("bell", 1.0, 2.0), Event("bell", 5.0, 6.0), Event("horn", 3.0, 4.0)]
    found = [Event("bell", 5.2, 6.3), Event("siren", 1.0, 2.0), Event("horn", 3.5, 4.0)]
    scores = event_scores(truth, found)
    assert scores["f1"] == Share(2, 6)  # the bell at 5 s alone: the horn is half a second late
    assert scores["precision"] == scores["recall"] == Share(1, 3)
    assert scores["class f1"] == Share(4, 6)
    errors = scores["onset error"]
    assert isinstance(errors, Errors)
    assert sorted(errors.values) == pytest.approx([0.2, 0.5])


def test_a_second_of_a_class_is_not_counted_twice() -> None:
    truth, found = [Event("bell", 1.0, 2.0)], [Event("bell", 1.0, 2.0), Event("bell", 1.1, 2.0)]
    assert event_scores(truth, found)["f1"] == Share(2, 3)


@pytest.mark.parametrize(
    ("onset", "said", "tolerance"), [(0.7, 0.8, 0.1), (0.4, 0.15, 0.25), (0.3, 0.55, 0.25)]
)
def test_the_tolerance_itself_is_on_time(onset: float, said: float, tolerance: float) -> None:
    """In decimals, as answers have them: in binary 0.7 + 0.1 is less than 0.8."""
    truth = [Event("bell", onset, 1)]
    assert on_time(truth, [Event("bell", said, 1)], tolerance) == 1
    assert on_time(truth, [Event("bell", said, 1)], tolerance - 0.01) == 0


def test_as_many_on_time_as_an_optimal_assignment() -> None:
    """Crowded cases, in which a greedy choice of the nearest would lose pairs."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        truth, found = random_events(rng, 1.5), random_events(rng, 1.5)
        near = np.array(
            [[t.label == f.label and abs(t.onset - f.onset) <= 0.25 for f in found] for t in truth],
            dtype=bool,
        ).reshape(len(truth), len(found))
        rows, columns = linear_sum_assignment(~near)
        assert on_time(truth, found) == near[rows, columns].sum()


def test_as_many_pairs_as_an_optimal_assignment() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth, found = random_events(rng, 9), random_events(rng, 9)
        pairs = match(truth, found)
        same = np.array([[t.label == f.label for f in found] for t in truth], dtype=bool)
        same = same.reshape(len(truth), len(found))
        rows, columns = linear_sum_assignment(~same)
        assert len(pairs) == same[rows, columns].sum()
        assert all(t.label == f.label for t, f in pairs)
