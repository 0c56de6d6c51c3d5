"""Batched answers are those of the public interface, one question at a time."""

from __future__ import annotations

import math
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import afnext
from afnext.audio.windows import cut_windows
from afnext.engine.engine import PAGE_SIZE
from afnext.engine.pages import page_bytes
from afnext.evaluation.generate import Listener, Request
from afnext.hub import EMBEDDED

LENGTHS = {"a": 1.3, "b": 31.0, "c": 2.72}
LONGEST = 12

REQUESTS = [
    *(Request((name,), (text,), LONGEST) for name in LENGTHS for text in ("When?", "What do you hear?")),
    Request(("b",), ("What do you hear?", "bell.", "And what else is there?"), LONGEST),
    Request(("a", "c"), ("Which recording has a bell?",), LONGEST),
    Request(("c",), ("Is there a bell?",), 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def samples() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return {
        name: (random.standard_normal(round(16_000 * s)) * 0.1).astype(np.float32)
        for name, s in LENGTHS.items()
    }


@pytest.fixture(scope="module")
def listener(tiny: Path, samples: dict[str, NDArray[np.float32]]) -> Listener:
    return Listener(tiny, lambda name: list(cut_windows([samples[name]])))


def answers(listener: Listener) -> list[str]:
    found = dict(listener.answers(REQUESTS))
    return [found[i] for i in range(len(REQUESTS))]


def test_batched_answers_are_those_of_ask(
    listener: Listener, tiny: Path, samples: dict[str, NDArray[np.float32]]
) -> None:
    assistant = afnext.load(tiny)
    expected = []
    for request in REQUESTS:
        audio = [samples[name] for name in request.sounds]
        messages = [afnext.Message("user", request.texts[0], audio)]
        for role, text in zip(("assistant", "user"), request.texts[1:], strict=False):
            messages.append(afnext.Message(role, text))
        expected.append(assistant.reply(messages, temperature=0.0, max_tokens=request.longest).text)
    assert len(set(expected)) > 3  # a model that always says the same would prove nothing
    assert answers(listener) == expected


def test_answers_do_not_depend_on_what_shares_the_batch(
    listener: Listener, tiny: Path, samples: dict[str, NDArray[np.float32]]
) -> None:
    """Nor on the size of a step, or on how much is in the cache."""
    together = answers(listener)
    page = page_bytes(listener.net.config.text, PAGE_SIZE, torch.float32)
    longest = (
        max(len(r.texts[0]) for r in REQUESTS) + 200 + 25 * sum(map(math.ceil, LENGTHS.values()))
    )
    few_pages = -(-longest // PAGE_SIZE) * page
    for engine in (
        {"max_running": 1},
        {"max_running": 3, "cache_bytes": few_pages},
        {"max_step_tokens": 40, "max_running": 40},
    ):
        other = Listener(tiny, lambda name: list(cut_windows([samples[name]])), **engine)
        assert answers(other) == together
        assert other.engine.stats().pages == (few_pages // page if "cache_bytes" in engine else ANY)


def test_questions_about_one_recording_read_it_once(
    tiny: Path, samples: dict[str, NDArray[np.float32]]
) -> None:
    listener = Listener(tiny, lambda name: list(cut_windows([samples[name]])))
    list(listener.answers([Request(("b",), (text,), 2) for text in ("When?", "Where?", "Who?")]))
    stats = listener.engine.stats()
    assert stats.audio_misses == 2  # windows
    assert stats.cached_tokens >= 2 * (31 * 25 // PAGE_SIZE) * PAGE_SIZE


def test_all_pages_come_back(listener: Listener) -> None:
    answers(listener)
    some = listener.answers(REQUESTS)
    next(some)
    some.close()
    stats = listener.engine.stats()
    assert (stats.free_pages, stats.running, stats.waiting) == (stats.pages, 0, 0)


def test_nothing_asked(listener: Listener) -> None:
    assert list(listener.answers([])) == []


@pytest.mark.slow
def test_a_trained_model_answers_as_by_ask(samples: dict[str, NDArray[np.float32]]) -> None:
    """The embedded model, whose answers end by themselves."""
    listener = Listener(
        EMBEDDED["nano"], lambda name: list(cut_windows([samples[name]])), torch.float32
    )
    assistant = afnext.load("nano", dtype="float32")  # batches round otherwise in bfloat16
    requests = [Request((name,), ("What do you hear, and when?",)) for name in ("a", "c")]
    for number, answer in listener.answers(requests):
        (name,) = requests[number].sounds
        assert (
            answer == assistant.ask(samples[name], requests[number].texts[0], temperature=0.0).text
        )
