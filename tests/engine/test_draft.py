"""A draft model changes how many steps an answer takes, and not the answer."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import afnext
from afnext.engine import Engine, GenerationParams, Prompt
from afnext.engine.engine import PAGE_SIZE
from afnext.engine.pages import page_bytes
from afnext.hub import find_model
from afnext.model import AudioLanguageModel
from tests.engine.models import heard, small_model, window

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other() -> AudioLanguageModel:
    """A model of other weights: its guesses are nearly all wrong."""
    return small_model(seed=8)


@pytest.fixture(scope="module")
def near(net: AudioLanguageModel) -> AudioLanguageModel:
    """One that is often right."""
    model = copy.deepcopy(net)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.language_model.parameters():
            p += 0.02 * p.std() * torch.randn_like(p) if p.dim() > 1 else 0
    return model


def prompts(speculate: int) -> list[Prompt]:
    """Greedy and sampled, short and long, with and without audio, several answers to one."""
    early, late = window(1.3, 1), window(1.3, 1, start=30.0)
    greedy = GenerationParams(max_tokens=40, speculate=speculate)
    drawn = replace(greedy, temperature=1.2, seed=5, top_k=20)
    return [
        Prompt([7], (), greedy),
        Prompt(heard([early], [1, 2], [3]), [early], greedy),
        Prompt(heard([late], [1, 2], [3]), [late], drawn),
        Prompt([i % 50 for i in range(200)], (), drawn),
        Prompt([i % 50 for i in range(100)], (), replace(drawn, n=3)),
        Prompt([4, 5], (), replace(drawn, repetition_penalty=1.3, logprobs=2)),
    ]


def said(engine: Engine, speculate: int) -> list[list[int]]:
    records = engine.generate(prompts(speculate))
    return [r.tokens for record in records for r in (record, *record.others)]


def idle(engine: Engine) -> bool:
    """Whether nobody holds a page, of the model's or of the draft's."""
    assert engine.draft is not None
    stats, allocator = engine.stats(), engine.draft.allocator
    return stats.free_pages == stats.pages and allocator.available == allocator.num_pages


@pytest.mark.parametrize("drafted", ["net", "near", "other"])
@pytest.mark.parametrize("limits", [{}, {"pages": 20, "max_step_tokens": 48, "max_running": 6}])
def test_answers_are_those_without(
    request: pytest.FixtureRequest,
    net: AudioLanguageModel,
    drafted: str,
    limits: dict[str, int],
) -> None:
    """Seeds included; with pages that run out, prompts cut by steps, prefixes shared; twice over."""
    limits, expected = dict(limits), said(Engine(net, []), 0)
    if "pages" in limits:
        page = page_bytes(net.config.text, PAGE_SIZE, torch.float32)
        limits["cache_bytes"] = 2 * page * limits.pop("pages")
    engine = Engine(net, [], draft=request.getfixturevalue(drafted), **limits)
    for speculate in (1, 5):
        assert said(engine, speculate) == expected
    assert idle(engine)
    stats = engine.stats()
    assert 0 <= stats.accepted_tokens <= stats.draft_tokens
    share = stats.accepted_tokens / stats.draft_tokens
    least, most = {"net": (0.97, 1.0), "near": (0.2, 0.97), "other": (0.0, 0.3)}[drafted]
    assert least <= share <= most, share


def test_a_preempted_answer_goes_on_where_it_was(net: AudioLanguageModel) -> None:
    """Four answers that grow past six pages: the draft's share of them is read again too."""
    page = page_bytes(net.config.text, PAGE_SIZE, torch.float32)
    engine = Engine(net, [], draft=net, cache_bytes=6 * 2 * page)
    asked = [
        Prompt([i] * 20, (), GenerationParams(max_tokens=60, temperature=1.0, seed=i, speculate=3))
        for i in range(4)
    ]
    alone = [Engine(net, []).generate([unguessed(p)])[0].tokens for p in asked]
    assert [r.tokens for r in engine.generate(asked)] == alone
    assert engine.stats().preemptions > 0
    assert idle(engine)


def unguessed(prompt: Prompt) -> Prompt:
    assert prompt.params is not None
    return replace(prompt, params=replace(prompt.params, speculate=0))


def test_the_model_itself_guesses_right_and_saves_steps(net: AudioLanguageModel) -> None:
    clip = window(1.3, 1)
    ids, k = heard([clip], [1, 2], [3]), 4
    for params in (
        GenerationParams(max_tokens=100, speculate=k),
        GenerationParams(max_tokens=100, speculate=k, temperature=1.5, seed=3),
        GenerationParams(max_tokens=100, speculate=k, temperature=1.5),
    ):
        engine = Engine(net, [], draft=net)
        assert len(engine.submit(ids, [clip], params).result().tokens) == 100
        stats = engine.stats()
        assert stats.accepted_tokens >= 0.97 * stats.draft_tokens > 0
        assert stats.steps <= 1 + 100 // (k + 1) + 3  # one by one it would be 100


def test_who_does_not_ask_is_not_guessed_for(net: AudioLanguageModel) -> None:
    engine = Engine(net, [], draft=net)
    engine.submit([1, 2, 3], (), GenerationParams(max_tokens=20)).result()
    assert engine.stats().draft_tokens == 0
    assert engine.stats().steps == 20


def test_the_end_within_guesses_is_the_end(net: AudioLanguageModel) -> None:
    free = Engine(net, []).submit([1, 2, 3], (), GenerationParams(max_tokens=60)).result().tokens
    end = free[40]
    engine = Engine(net, [end], draft=net)
    record = engine.submit([1, 2, 3], (), GenerationParams(max_tokens=60, speculate=7)).result()
    assert record.tokens == free[: free.index(end)]
    assert record.stopped == "end"
    assert idle(engine)


def test_samples_of_one_prompt_are_read_once_by_the_draft(net: AudioLanguageModel) -> None:
    engine = Engine(net, [], draft=net)
    assert engine.draft is not None
    read = []
    step = engine.draft.runner.step

    def counting(chunks, pool):  # type: ignore[no-untyped-def]
        read.extend(len(c.ids) for c in chunks)
        return step(chunks, pool)

    engine.draft.runner.step = counting  # type: ignore[method-assign]
    params = GenerationParams(max_tokens=2, n=4, temperature=1.0, seed=1, speculate=1)
    params = replace(params, max_tokens=3)
    engine.submit([i % 50 for i in range(300)], (), params).result()
    assert sum(read) < 300 + 4 * (PAGE_SIZE + 6)


def test_cancelled_and_late_requests_leave_no_page(net: AudioLanguageModel) -> None:
    """Also one that is cancelled by another thread's eyes while the draft is at work."""
    engine = Engine(net, [], draft=net)
    assert engine.draft is not None
    params = GenerationParams(max_tokens=200, speculate=3)
    handles = [engine.submit([i, 2, 3], (), params) for i in range(3)]
    for handle in handles:
        next(handle)
    propose = engine.draft.propose

    def interrupted(requests, eos):  # type: ignore[no-untyped-def]
        handles[0].cancel()
        propose(requests, eos)

    engine.draft.propose = interrupted  # type: ignore[method-assign]
    assert len(handles[1].result().tokens) == 200
    assert handles[0].record.stopped == "cancelled"
    handles[2].cancel()
    engine.draft.propose = propose  # type: ignore[method-assign]
    late = engine.submit([1, 2], (), replace(params, timeout=60.0))
    next(late)
    late._request.deadline = 0.0  # long ago
    assert late.result().stopped == "timeout"
    assert idle(engine)


def test_a_draft_that_fails_fails_its_requests_and_no_other(net: AudioLanguageModel) -> None:
    engine = Engine(net, [], draft=net)
    assert engine.draft is not None

    def broken(*args: object) -> None:
        raise RuntimeError("the draft is broken")

    step, engine.draft.runner.step = engine.draft.runner.step, broken  # type: ignore[assignment]
    guessed = engine.submit([1, 2, 3], (), GenerationParams(max_tokens=9, speculate=2))
    plain = engine.submit([1, 2, 3], (), GenerationParams(max_tokens=9))
    with pytest.raises(RuntimeError, match="draft is broken"):
        guessed.result()
    assert len(plain.result().tokens) == 9
    engine.draft.runner.step = step  # type: ignore[method-assign]
    again = engine.submit([1, 2, 3], (), GenerationParams(max_tokens=9, speculate=2)).result()
    assert again.tokens == plain.record.tokens
    assert idle(engine)


def test_a_draft_with_less_context_stops_guessing(net: AudioLanguageModel) -> None:
    short = copy.deepcopy(net)
    text = replace(short.config.text, max_position_embeddings=64)
    short.config = replace(short.config, text=text)
    ids, params = [i % 50 for i in range(50)], GenerationParams(max_tokens=60, speculate=4)
    engine = Engine(net, [], draft=short)
    expected = Engine(net, []).submit(ids, (), replace(params, speculate=0)).result().tokens
    assert engine.submit(ids, (), params).result().tokens == expected
    assert 4 <= engine.stats().draft_tokens <= 14


def test_changed_weights_of_the_draft_are_seen(net: AudioLanguageModel) -> None:
    draft = copy.deepcopy(net)
    engine = Engine(net, [], draft=draft)
    params = GenerationParams(max_tokens=60, speculate=3)
    first = engine.submit([1, 2, 3], (), params).result().tokens
    before = engine.stats()
    with torch.no_grad():
        draft.language_model.lm_head.weight.copy_(torch.randn(64, 64))
    assert engine.submit([1, 2, 3], (), params).result().tokens == first
    after = engine.stats()
    right = after.accepted_tokens - before.accepted_tokens
    assert right < 0.5 * (after.draft_tokens - before.draft_tokens)


def test_other_tokens_are_refused(net: AudioLanguageModel, tmp_path: Path) -> None:
    nano = AudioLanguageModel.from_pretrained(find_model("nano"))
    with pytest.raises(ValueError, match=r"^draft: .*share a tokenizer"):
        Engine(net, [], draft=nano)
    folder = tmp_path / "other"
    shutil.copytree(find_model("nano"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"^draft: .*another tokenizer"):
        afnext.load("nano", draft=folder)


def test_load_takes_a_draft() -> None:
    """Constrained and free, greedy and drawn: what nano says with nano's help."""
    rng = np.random.default_rng(0)
    clip = (0.1 * rng.standard_normal(32_000)).astype(np.float32)
    plain = afnext.load("nano", dtype="float32")
    helped = afnext.load("nano", dtype="float32", draft="nano")
    schema = {
        "type": "object",
        "properties": {"loud": {"type": "boolean"}, "sound": {"enum": ["speech", "noise"]}},
        "required": ["loud", "sound"],
        "additionalProperties": False,
    }
    for options in (
        {"max_tokens": 40},
        {"max_tokens": 40, "temperature": 0.9, "seed": 2},
        {"json_schema": schema, "max_tokens": 60},
        {"choice": ["speech", "noise"], "temperature": 1.0, "seed": 4},
    ):
        replies = [m.ask(clip, "What do you hear?", **options) for m in (plain, helped)]
        assert replies[0].text == replies[1].text
    stats = helped.engine.stats()
    assert stats.accepted_tokens >= 0.9 * stats.draft_tokens > 0
    assert stats.steps < plain.engine.stats().steps / 2
    assert idle(helped.engine)
