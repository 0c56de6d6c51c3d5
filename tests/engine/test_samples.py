"""Several answers to one prompt, log-probabilities, and guesses that change nothing."""

from __future__ import annotations

import pytest
import torch

from afnext.engine import Engine, GenerationParams
from afnext.engine.speculation import PromptLookup
from afnext.model import AudioBatch, AudioLanguageModel
from tests.engine.models import SOUND, heard, window


def test_several_answers_read_the_prompt_once(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    clip = window(6.0)
    ids = heard([clip], [1, 2], [3])
    params = GenerationParams(max_tokens=20, temperature=1.5, seed=7, n=4)
    record = engine.submit(ids, [clip], params).result()
    stats = engine.stats()
    assert stats.audio_misses == 1
    assert [r.cached_tokens for r in record.others] == [len(ids) // 32 * 32] * 3
    alone = [
        engine.submit(ids, [clip], GenerationParams(max_tokens=20, temperature=1.5, seed=7 + i))
        for i in range(4)
    ]
    handles = engine.submit(ids, [clip], params).samples
    found = [h.result().tokens for h in handles]
    assert found == [h.result().tokens for h in alone]
    assert len(set(map(tuple, found))) == 4


def test_logprobs_are_those_of_the_full_forward(net: AudioLanguageModel) -> None:
    clip = window(0.5)
    ids = heard([clip], [1], [2])
    params = GenerationParams(max_tokens=10, temperature=2.0, seed=1, logprobs=3)
    record = Engine(net, []).submit(ids, [clip], params).result()
    whole = torch.tensor([ids + record.tokens])
    with torch.no_grad():
        logits = net(whole, AudioBatch.collate([[clip]]))[0, len(ids) - 1 : -1]
    expected = logits.double().log_softmax(-1)
    assert [p.token for p in record.logprobs] == record.tokens
    for row, found in zip(expected, record.logprobs, strict=True):
        # float32 sums in another order
        assert found.logprob == pytest.approx(float(row[found.token]), abs=1e-4)
        values, tokens = row.topk(3)
        assert [t for t, _ in found.top] == tokens.tolist()
        assert [p for _, p in found.top] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.4])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_guesses_change_nothing_but_the_steps(
    net: AudioLanguageModel, temperature: float, penalty: float
) -> None:
    """Wrong guesses, in the main: see below for right ones."""
    ids = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    said = []
    for speculate in (0, 1, 5):
        engine = Engine(net, [])
        handles = [
            engine.submit(
                [*ids, first], (),
                GenerationParams(
                    max_tokens=120, temperature=temperature, seed=first, speculate=speculate,
                    repetition_penalty=penalty, logprobs=0,
                ),
            )
            for first in range(3)
        ]  # fmt: skip
        said.append([h.result().tokens for h in handles])
        assert all(len(h.record.logprobs) == 120 for h in handles)
        assert engine.stats().free_pages == engine.stats().pages
    assert said[0] == said[1] == said[2]
    assert all(len(tokens) == 120 for tokens in said[0])


def test_right_guesses_save_steps(net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses of somebody who knows the answer, but for every fifth token."""
    ids, params = [1, 2, 3], GenerationParams(max_tokens=100, speculate=6)
    plain = Engine(net, []).submit(ids, (), GenerationParams(max_tokens=100)).result().tokens
    asked = []

    def know(self: PromptLookup, tokens: list[int], count: int) -> list[int]:
        asked.append(count)
        at = len(tokens) - len(ids)
        return [(t + (i % 5 == 4)) % 59 for i, t in enumerate(plain)][at : at + count]

    monkeypatch.setattr(PromptLookup, "propose", know)
    engine = Engine(net, [])
    assert engine.submit(ids, (), params).result().tokens == plain
    assert engine.stats().steps <= 1 + 2 * 100 // 5
    assert max(asked) == 6
    # Beside prompts that are read in the same steps:
    engine = Engine(net, [], max_step_tokens=32, max_running=4)
    handle = engine.submit(ids, (), params)
    next(handle)
    engine.submit([i % 50 for i in range(500)], (), GenerationParams(max_tokens=1)).result()
    assert len(handle.record.tokens) > 30
    assert handle.result().tokens == plain


def test_the_end_within_guesses_is_the_end(net: AudioLanguageModel) -> None:
    ids = [1, 2, 3]
    free = Engine(net, []).submit(ids, (), GenerationParams(max_tokens=100)).result().tokens
    end = free[60]
    answers = [
        Engine(net, [end]).submit(ids, (), GenerationParams(max_tokens=100, speculate=k)).result()
        for k in (0, 6)
    ]
    assert answers[0].tokens == answers[1].tokens == free[: free.index(end)]
    assert answers[1].stopped == "end"


def test_what_followed_is_guessed_to_follow() -> None:
    lookup = PromptLookup(SOUND)
    tokens = [1, 2, 3, 4, 5, 1, 2, 3]
    assert lookup.propose(tokens, 2) == [4, 5]
    tokens += [4, 9]
    assert lookup.propose(tokens, 4) == []
    tokens += [3, 4]  # the last time 9 followed
    assert lookup.propose(tokens, 1) == [9]
    assert PromptLookup(SOUND).propose([7], 3) == []
    silent = PromptLookup(SOUND)
    assert silent.propose([SOUND] * 9, 3) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0, "temperature": 1.0}, "n: must"),
        ({"n": True, "temperature": 1.0}, "n: must"),
        ({"n": 2}, "n: 2 greedy"),
        ({"n": 2, "temperature": 1.0, "seed": 2**63 - 1}, "seed"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 1.5}, "logprobs"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"speculate": -1}, "speculate"),
    ],
)
def test_impossible_params_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GenerationParams(**options)
