"""A recording asked of a model: called off in the middle of its prompt."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import soundfile

import afnext
from afnext.bulk.answers import asking
from afnext.bulk.pool import Stop


@pytest.mark.slow
def test_a_prompt_is_called_off(tmp_path: Path) -> None:
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

    thread = Thread(target=ask)
    thread.start()
    deadline = time.monotonic() + 60
    while model.engine.stats().steps < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    stop.set()
    thread.join(60)
    assert raised
    stats = model.engine.stats()
    assert stats.steps < 100
    assert (stats.running, stats.free_pages) == (0, stats.pages)
