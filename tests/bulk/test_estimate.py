"""Time left follows seconds of audio, not the number of files."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from afnext.bulk.estimate import Estimate
from afnext.bulk.progress import clock, describe, progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_long_file_at_the_end_counts_for_what_it_is() -> None:
    now = Clock()
    estimate = Estimate(["short", "also", "long"], now)
    for file, seconds in (("short", 10.0), ("also", 10.0), ("long", 1000.0)):
        estimate.learn(file, seconds)
    assert estimate.time_left() is None
    now.now = 4.0
    estimate.finish("short", 10.0)
    estimate.finish("also", 10.0)
    assert estimate.time_left() == 4.0 * 1000 / 20
    now.now = 204.0
    estimate.finish("long", 1000.0)
    assert estimate.time_left() == 0


def test_unknown_lengths_are_the_mean_of_the_known() -> None:
    now = Clock()
    estimate = Estimate(["a", "b", "c", "d"], now)
    assert estimate.audio() is None
    estimate.learn("a", 10.0)
    estimate.learn("b", 30.0)
    estimate.learn("c", None)
    assert estimate.audio() == (0.0, 80.0)
    now.now = 1.0
    estimate.finish("a", 10.0)
    assert estimate.audio() == (10.0, 70.0)
    estimate.finish("d", 50.0)
    estimate.learn("d", 1e9)  # the header reader comes late
    assert estimate.audio() == (60.0, 60.0)


def test_broken_files_do_not_make_the_rest_look_fast() -> None:
    now = Clock()
    estimate = Estimate(["a", "b", "broken"], now)
    estimate.learn("a", 10.0)
    estimate.learn("b", 10.0)
    estimate.learn("broken", 0.0)
    now.now = 2.0
    estimate.finish("a", 10.0)
    estimate.finish("broken", None)
    assert estimate.time_left() == 2.0


def test_words() -> None:
    now = Clock()
    estimate = Estimate(["a", "b"], now)
    assert describe(estimate, 3) == "3 of 5 files, estimating"
    estimate.learn("b", 3661.0)
    now.now = 5.0
    estimate.finish("a", 36.61)
    assert describe(estimate, 3) == "4 of 5 files, 1:01:01 of audio to hear, 8:20 left"
    assert clock(59.6) == "1:00"


def test_a_pipe_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress(tmp_path, ["a"], 0) as estimate:
        estimate.finish("a", 1.0)
    assert capsys.readouterr() == ("", "")  # it was over before there was anything to tell
    monkeypatch.setattr("afnext.bulk.progress.EVERY", 0.01)
    told, until = "", time.monotonic() + 30
    with progress(tmp_path, ["a", "b"], 3) as estimate:
        estimate.finish("a", 1.0)
        while "4 of 5" not in told and time.monotonic() < until:
            out, more = capsys.readouterr()
            assert out == ""
            told += more
            time.sleep(0.01)
    told += capsys.readouterr().err
    line = r"afnext: 4 of 5 files, [0-9:]+ of audio to hear, [0-9:]+ left\n"
    assert re.fullmatch(rf"(afnext: 3 of 5 files, .*\n)*({line})+", told)
