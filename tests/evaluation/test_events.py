"""Matching events: hand-made cases, and an independent matcher from SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from afnext.evaluation.events import EventScore, match, parse_events, quantile
from afnext.training.synthesis import Event


def test_answers_are_read() -> None:
    text = "Bell <t>1.2-2.5</t>, siren <t>3-4.25</t>. And <t>9.0-9.1</t>, horn."
    assert parse_events(text)[:2] == [Event("bell", 1.2, 2.5), Event("siren", 3.0, 4.25)]
    assert parse_events("Nothing.") == []
    assert parse_events("bell <t>1.2-</t>") == []


def test_counts() -> None:
    truth = [Event("bell", 1.0, 2.0), Event("bell", 5.0, 6.0), Event("horn", 3.0, 4.0)]
    found = [Event("bell", 5.2, 6.3), Event("siren", 1.0, 2.0), Event("horn", 3.5, 4.0)]
    score = EventScore()
    score.add(truth, found)
    score.add([], [])
    s = score.summary()
    assert (s["recall"], s["precision"]) == pytest.approx((2 / 3, 2 / 3))
    assert s["recall_250ms"] == pytest.approx(1 / 3)  # the horn is 0.5 s late
    assert s["same_set"] == 0.5
    assert s["onset_median"] == pytest.approx(0.35)
    assert s["offset_median"] == pytest.approx(0.15)


def test_nothing_found_scores_nothing() -> None:
    score = EventScore()
    score.add([Event("bell", 0, 1)], [])
    assert score.summary()["recall"] == score.summary()["precision"] == 0
    assert quantile([], 0.9) == 0
    assert quantile(range(10), 0.9) == 9


def test_as_many_pairs_as_an_optimal_assignment() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth, found = (
            [Event("ab"[rng.integers(2)], t, t + 1) for t in rng.uniform(0, 9, rng.integers(1, 6))]
            for _ in range(2)
        )
        pairs = match(truth, found)
        same = np.array([[t.label == f.label for f in found] for t in truth])
        rows, columns = linear_sum_assignment(~same)
        assert len(pairs) == same[rows, columns].sum()
        assert all(t.label == f.label for t, f in pairs)
