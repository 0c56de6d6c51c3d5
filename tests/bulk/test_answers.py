"""A recording asked of a model: called off in the middle of its prompt."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import soundfile

import afnext
from afnext.bulk.answers import asking
from afnext.bulk.pool import Stop


@pytest.mark.slow
def test_a_prompt_is_called_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = tmp_path / "long.wav"
    noise = np.random.default_rng(0).standard_normal(16_000 * 50) * 0.01
    soundfile.write(recording, noise, 16_000)
    model = afnext.load("nano", max_step_tokens=8, max_running=8)  # some 150 steps for the prompt
    answer, stop, raised = asking(model, "What is it?", max_tokens=4), Stop(), []

    def ask() -> None:
        try:
            answer(recording, stop)
        except InterruptedError as error:
            raised.append(error)

    began, goes_on, step = Event(), Event(), model.engine.runner.step

    def held(*arguments: object) -> object:
        if model.engine.stats().steps == 2:
            began.set()
            goes_on.wait(60)
        return step(*arguments)

    monkeypatch.setattr(model.engine.runner, "step", held)
    thread = Thread(target=ask)
    thread.start()
    assert began.wait(60)
    stop.set()
    goes_on.set()
    thread.join(60)
    assert raised
    deadline = time.monotonic() + 60
    while (stats := model.engine.stats()).running:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert stats.steps == 3
    assert (stats.running, stats.free_pages) == (0, stats.pages)
