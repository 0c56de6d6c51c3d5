"""Batched answers are those of the public interface, one question at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import afnext
from afnext.audio.windows import cut_windows
from afnext.evaluation import generate
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
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = answers(listener)
    for rows, size in ((1, 1), (3, 1), (generate.ROWS, 1)):
        monkeypatch.setattr(generate, "ROWS", rows)
        monkeypatch.setattr(generate, "POOL_BYTES", size)  # as many pages as one recording needs
        assert answers(listener) == together


def test_long_prompts_are_read_in_chunks(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answers(listener)
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 40)
    assert answers(listener) == whole


def test_all_pages_come_back(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = []
    make = listener._pool
    monkeypatch.setattr(listener, "_pool", lambda pages: pools.append(make(pages)) or pools[-1])
    answers(listener)
    assert len(pools) == 1
    assert pools[0].free_pages == pools[0].num_pages


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
