"""Steps that read prompts take no longer than others can wait, however slow the machine is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from afnext.engine import Engine, GenerationParams, Prompt, stepper
from afnext.engine.pace import ALONE, LEAST, TALKING, Pace
from afnext.engine.runner import Chunk
from tests.engine.models import small_model


@pytest.mark.parametrize("talking", [False, True])
@pytest.mark.parametrize(("second", "weight"), [(0.03, 0.35), (0.001, 0.05)])
def test_a_slow_machine_reads_a_prompt_in_small_steps(
    monkeypatch: pytest.MonkeyPatch, talking: bool, second: float, weight: float
) -> None:
    """A clock is played: a step takes ``weight`` and ``second`` more a token, as 7B does on two cores."""
    engine = Engine(small_model(text={"max_position_embeddings": 4096}), [])
    now, steps = [0.0], []
    monkeypatch.setattr(stepper, "perf_counter", lambda: now[0])
    step = engine.runner.step

    def played(chunks: Sequence[Chunk], pool: Any) -> torch.Tensor:
        count = sum(len(c.ids) for c in chunks)
        steps.append((count, weight + count * second))
        now[0] += steps[-1][1]
        return step(chunks, pool)

    monkeypatch.setattr(engine.runner, "step", played)
    engine.submit([1] * 40, (), GenerationParams(max_tokens=1)).result()
    talker = engine.submit([1, 2], (), GenerationParams(max_tokens=400))
    if talking:
        next(talker)
    else:
        talker.cancel()
    steps.clear()
    long = [i % 50 for i in range(3000)]
    engine.submit(long, (), GenerationParams(max_tokens=1)).result()
    most = TALKING if talking else ALONE
    # Behind the first ones, by which the machine is known.
    settled = steps[4:] or steps[1:]
    assert max(seconds for _, seconds in settled) <= max(1.1 * most, weight + second * (LEAST + 1))
    assert sum(count for count, _ in steps) == 3000 + (len(steps) if talking else 0)
    assert max(count for count, _ in steps) >= min(most / second / 4, 512)


def test_tokens_of_answers_tell_nothing_about_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many that are said at once cost reading the weights, few of a prompt cost as much."""
    engine = Engine(small_model(), [])
    now = [0.0]
    monkeypatch.setattr(stepper, "perf_counter", lambda: now[0])
    step = engine.runner.step

    def played(chunks: Sequence[Chunk], pool: Any) -> torch.Tensor:
        now[0] += 1.0
        return step(chunks, pool)

    monkeypatch.setattr(engine.runner, "step", played)
    params = GenerationParams(max_tokens=3)
    engine.generate([Prompt([n % 50], (), params) for n in range(2 * LEAST)])
    assert engine._stepper._pace.limit(True) >= 2048
    engine.generate([Prompt([1] * 2 * LEAST, (), params)])
    assert engine._stepper._pace.limit(True) <= 2 * LEAST


def test_a_fast_machine_reads_as_much_as_fits() -> None:
    pace = Pace("cuda", 15 << 30)
    assert pace.limit(True) >= 2048
    for _ in range(20):
        pace.took(2048, 0.1)
    assert pace.limit(True) >= 8192
    for _ in range(20):
        pace.took(1, 0.1)  # says nothing about prompts
    assert pace.limit(True) >= 8192
    assert Pace("cpu", 20 << 20).limit(True) >= 2048  # nano


def test_a_slow_machine_is_known_before_the_first_step() -> None:
    assert LEAST <= Pace("cpu", 7 << 30).limit(False) <= 256
