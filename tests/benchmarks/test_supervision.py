"""Children that fail, hang or die cost the item that they were at; the others are done."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import supervision
from benchmarks.gpu.supervision import Job

pytestmark = pytest.mark.slow


def worker(settings: Mapping[str, Any]) -> Callable[[str], Any]:
    """What the children of these tests do: as an item's name says."""

    def work(item: str) -> Any:
        if item == "raises":
            raise ValueError("planted")
        if item == "hangs":
            time.sleep(60)
        if item == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "reads its environment":
            return os.environ["PLANTED"]
        return [item, settings["value"]]

    return work


def run(*items: str, seconds: float = 20, **options: Any) -> dict[str, supervision.Answer]:
    job = Job(f"{__name__}:worker", items, seconds, {"value": 3}, **options)
    return dict(supervision.run(job))


@pytest.mark.slow
def test_each_item_is_answered_whatever_the_others_do() -> None:
    answers = run("first", "raises", "hangs", "dies", "last", seconds=6)
    assert list(answers) == ["first", "raises", "hangs", "dies", "last"]
    assert answers["first"].value == ["first", 3]
    assert answers["last"].value == ["last", 3]
    assert answers["raises"].error == "ValueError: planted"
    assert answers["hangs"].error == "not done after 6 s"
    assert answers["dies"].error.startswith("the process ended with -9")


def test_a_child_has_the_variables_that_its_job_gives() -> None:
    item = "reads its environment"
    assert run(item, environment={"PLANTED": "yes"})[item].value == "yes"


def test_work_that_cannot_begin_is_an_error_of_every_item() -> None:
    answers = dict(supervision.run(Job("benchmarks.gpu.nothing:worker", ["a", "b"])))
    assert set(answers) == {"a", "b"}
    assert all("No module named" in answer.error for answer in answers.values())


@pytest.mark.parametrize("code", [0, 9])
def test_a_wrapper_has_the_last_word(tmp_path: Path, code: int) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\n"$@"\necho verdict\nexit {code}\n')
    wrapper.chmod(0o755)
    answers = run("a", wrapper=[str(wrapper)])
    assert list(answers) == ["a", supervision.END]
    assert bool(answers[supervision.END].error) == (code != 0)
    if code:
        assert "verdict" in answers[supervision.END].error


def test_nothing_is_done_after_the_deadline() -> None:
    job = Job(f"{__name__}:worker", ["a"])
    assert list(supervision.run(job, deadline=time.monotonic() - 1)) == []
