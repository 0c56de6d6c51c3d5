"""Variants compared: intervals against SciPy, the table to the letter, the picture by what is drawn in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from afnext.evaluation.comparison import MOST_SEEDS, Row, compare, draw, estimate, figure, table

ROWS = [Row("events", "f1", "2 s"), Row("events", "f1", "9 s"), Row("when", "onset error", "9 s")]
TITLES = {"base": "base", "other": "another way", "once": "one seed"}


def run(short: float, long: float, error: float) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        "events, 2 s": {"f1": {"value": short}},
        "events, 9 s": {"f1": {"value": long}},
        "when, 9 s": {"onset error": {"value": error}},
    }


RUNS = {
    "base": {1: run(0.5, 0.2, 0.1), 2: run(0.6, 0.3, 0.2), 3: run(0.7, 0.4, 0.3)},
    "other": {1: run(0.6, 0.1, 0.1), 2: run(0.7, 0.3, 0.2), 3: run(0.8, 0.5, 0.0)},
    "once": {2: run(0.9, 0.3, 0.25)},
}


@pytest.mark.parametrize("count", range(2, MOST_SEEDS + 1))
def test_intervals_are_students(count: int) -> None:
    """SciPy's, within the three places that quantiles are written with."""
    values = np.random.default_rng(count).normal(size=count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    found = estimate(values.tolist())
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half == pytest.approx((high - low) / 2, rel=2e-4)


def test_one_value_has_no_interval() -> None:
    assert estimate([0.3]).half == math.inf
    assert not estimate([0.3]).clear


def test_the_table() -> None:
    """Half widths by hand: t(2) = 4.303 times the standard deviation, over the root of 3."""
    assert table(list(compare(RUNS, ROWS)), TITLES) == (
        "| asked | recordings | base | another way | one seed |\n"
        "|---|---|---|---|---|\n"
        "| events, F1 | 2 s | 60.0 ± 24.8 | 70.0 ± 24.8 (**+10.0 ± 0.0**) | 90.0 (+30.0) |\n"
        "| events, F1 | 9 s | 30.0 ± 24.8 | 30.0 ± 49.7 (+0.0 ± 24.8) | 30.0 (+0.0) |\n"
        "| when, onset error, median | 9 s | 0.20 ± 0.25 s | 0.10 ± 0.25 s (-0.10 ± 0.43 s) "
        "| 0.25 s (+0.05 s) |\n"
    )


def test_without_a_base_there_are_no_differences() -> None:
    compared = list(compare({"other": RUNS["other"]}, ROWS[:1]))
    assert table(compared, TITLES).endswith("| events, F1 | 2 s | 70.0 ± 24.8 |\n")
    assert [c.difference for c in compared] == [None]


def test_what_a_run_was_not_asked_is_left_out() -> None:
    partly = RUNS["base"] | {2: {"events, 2 s": {"f1": {"value": 0.5}}}}
    assert {c.row for c in compare({"base": partly}, ROWS)} == {ROWS[0]}
    assert list(compare(RUNS, [Row("events", "f1", "60 s"), Row("events", "recall", "2 s")])) == []


def test_for_json_an_open_interval_is_none() -> None:
    found = [c.to_dict() for c in compare(RUNS, ROWS[:1])]
    assert json.loads(json.dumps(found, allow_nan=False)) == [
        {"kind": "events", "measure": "f1", "length": "2 s", "variant": "base",
         "value": {"mean": 0.6, "half": 0.2484}},
        {"kind": "events", "measure": "f1", "length": "2 s", "variant": "other",
         "value": {"mean": 0.7, "half": 0.2484}, "difference": {"mean": 0.1, "half": 0.0}},
        {"kind": "events", "measure": "f1", "length": "2 s", "variant": "once",
         "value": {"mean": 0.9, "half": None}, "difference": {"mean": 0.3, "half": None}},
    ]  # fmt: skip


def test_the_picture_has_every_difference_where_it_belongs() -> None:
    drawn = figure(list(compare(RUNS, ROWS)), TITLES)
    shares, seconds = drawn.axes
    assert [shares.get_title(), seconds.get_title()] == ["events, F1", "when, onset error, median"]
    assert [t.get_text() for t in shares.get_yticklabels()] == ["another way", "one seed"]

    def points(container: Any) -> Sequence[tuple[float, float]]:
        return [(round(x, 6), round(y, 6)) for x, y in container.lines[0].get_xydata().tolist()]

    def bars(container: Any) -> list[tuple[float, float]]:
        ends = (segment[:, 0] for segment in container.lines[2][0].get_segments())
        return [(round(float(a), 1), round(float(b), 1)) for a, b in ends]

    short, long = shares.containers
    assert [short.get_label(), long.get_label()] == ["2 s", "9 s"]
    assert points(short) == [(10.0, -0.08), (30.0, 0.92)]
    assert points(long) == [(0.0, 0.08), (0.0, 1.08)]
    assert bars(short) == [(10.0, 10.0), (30.0, 30.0)]
    assert bars(long) == [(-24.8, 24.8), (0.0, 0.0)]
    assert points(seconds.containers[-1]) == [(-0.1, 0.08), (0.05, 1.08)]
    assert [t.get_text() for t in drawn.legends[0].get_texts()] == ["2 s", "9 s"]
    assert [seconds.get_xlabel(), shares.get_xlabel()] == ["difference, s", "difference, points"]


def test_the_picture_is_the_same_file_each_time(tmp_path: Path) -> None:
    compared = list(compare(RUNS, ROWS))
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw(compared, TITLES, tmp_path / name / "ablations.svg")
        texts.append((tmp_path / name / "ablations.svg").read_text())
    assert texts[0] == texts[1]
    assert all(title in texts[0] for title in ("another way", "one seed", "2 s"))
