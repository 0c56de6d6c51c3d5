"""The engine over its paged cache against the whole model recomputed at every token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from afnext.audio import AudioWindow
from afnext.engine import Engine, Generation, GenerationParams, Prompt, prefix
from afnext.engine.engine import PAGE_SIZE
from afnext.engine.pages import page_bytes
from afnext.model import AudioLanguageModel
from tests.engine.models import SOUND, heard, recomputed, small_model, window

PAGE = PAGE_SIZE


def answer(engine: Engine, ids: list[int], *windows: AudioWindow, **params: object) -> Generation:
    return engine.submit(ids, windows, GenerationParams(**params)).result()


def bytes_of(net: AudioLanguageModel, pages: int) -> int:
    return pages * page_bytes(net.config.text, PAGE, torch.float32)


def mixed_prompts() -> list[Prompt]:
    """Prompts of all lengths, with and without audio, some beginning alike."""
    early, late, other = window(1.3, 1), window(1.3, 1, start=30.0), window(2.4, 2)
    short = GenerationParams(max_tokens=20)
    return [
        Prompt(list(range(40)), (), short),
        Prompt([7], (), GenerationParams(max_tokens=40)),
        Prompt(heard([early], [1, 2], [3]), [early], short),
        Prompt(heard([late], [1, 2], [3]), [late], short),
        Prompt(heard([other, early], [1], [2], [3, 4]), [other, early], short),
        Prompt(heard([other, late], [1], [2], [3, 4]), [other, late], short),
        Prompt([i % 50 for i in range(300)], (), short),
        Prompt([i % 50 for i in range(300)] + [9], (), short),
    ]


@pytest.fixture(scope="module")
def expected(net: AudioLanguageModel) -> list[list[int]]:
    """What one forward says to ``mixed_prompts``."""
    return [
        recomputed(net, p.ids, p.windows, p.params.max_tokens) for p in mixed_prompts() if p.params
    ]


def test_greedy_equals_the_full_forward(net: AudioLanguageModel) -> None:
    """64 tokens, audio in the prompt: prefill, append and paged decode give what recomputing gives."""
    windows = [window(0.5), window(0.9, 1)]
    ids = heard(windows, [1], [2, 3], [4])
    record = answer(Engine(net, [63]), ids, *windows, max_tokens=64)
    expected = recomputed(net, ids, windows, 64)
    if 63 in expected:
        expected = expected[: expected.index(63)]
    assert record.tokens == expected
    assert record.audio_tokens == sum(w.num_tokens for w in windows)
    assert len(set(expected)) > 3  # a constant answer would prove nothing


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_step_tokens": 7, "max_running": 7},
        {"max_running": 2},
        {"pages": 14},
        {"pages": 11, "max_step_tokens": 64, "audio_cache_bytes": 0},
    ],
)
def test_a_batch_gives_what_one_forward_gives(
    net: AudioLanguageModel, expected: list[list[int]], limits: dict[str, int]
) -> None:
    """In one step or many, with windows cut by chunks, pages that run out, prefixes shared: the same."""
    limits = dict(limits)
    if "pages" in limits:
        limits["cache_bytes"] = bytes_of(net, limits.pop("pages"))
    engine = Engine(net, [], **limits)
    for _ in range(2):  # the second time over what the first one left
        assert [r.tokens for r in engine.generate(mixed_prompts())] == expected
    stats = engine.stats()
    assert stats.free_pages == stats.pages
    assert (stats.evicted_pages > 0) == ("cache_bytes" in limits)


def test_when_a_window_begins_is_heard(net: AudioLanguageModel) -> None:
    """The same samples 30 s later are another prompt, whatever is cached."""
    engine = Engine(net, [])
    early, late = window(1.3, 1), window(1.3, 1, start=30.0)
    ids = heard([early], [1, 2], [3])
    first, second = (answer(engine, ids, w, max_tokens=20).tokens for w in (early, late))
    assert first != second
    assert second == recomputed(net, ids, [late], 20)


def test_prompts_come_as_an_iterator_too(net: AudioLanguageModel) -> None:
    prompts = [Prompt([i, 2, 3], (), GenerationParams(max_tokens=3)) for i in range(3)]
    engine = Engine(net, [])
    at_once = [r.tokens for r in engine.generate(prompts)]
    assert [r.tokens for r in engine.generate(iter(prompts))] == at_once
    assert len(at_once) == 3


def test_prompts_are_hashed_before_they_wait(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not under the lock, where a thousand of them would hold up everybody."""
    engine = Engine(net, [], max_running=2)
    params = GenerationParams(n=2, temperature=1.0)
    handles = [engine.submit([i % 50 + n for i in range(320)], (), params) for n in range(3)]
    monkeypatch.setattr(prefix.hashlib, "blake2b", None)
    assert len(engine.scheduler.schedule()) == 2
    monkeypatch.undo()
    for handle in handles:
        handle.cancel()


def test_requests_are_batched(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    engine.generate([Prompt([i, 2, 3], (), GenerationParams(max_tokens=9)) for i in range(8)])
    assert engine.stats().steps == 9
    assert engine.stats().tokens == 72


def test_a_decoding_request_gets_a_token_in_every_step(net: AudioLanguageModel) -> None:
    """Also while a long prompt is being read, a little in each step."""
    engine = Engine(net, [], max_step_tokens=16, max_running=4)
    talking = engine.submit([1, 2, 3], (), GenerationParams(max_tokens=100))
    next(talking)
    long = engine.submit([i % 50 for i in range(400)], (), GenerationParams(max_tokens=2))
    before, said = engine.stats().steps, len(talking.record.tokens)
    long.result()
    steps = engine.stats().steps - before
    assert steps > 400 // 16
    assert len(talking.record.tokens) - said == steps


def test_a_short_prompt_overtakes_a_long_one(net: AudioLanguageModel) -> None:
    engine = Engine(net, [], max_step_tokens=32, max_running=4)
    long = engine.submit([i % 50 for i in range(400)], (), GenerationParams(max_tokens=1))
    short = engine.submit([5] * 16, (), GenerationParams(max_tokens=1))
    short.result()
    assert engine.stats().steps == 1
    assert not long.record.tokens


def test_a_preempted_answer_goes_on_where_it_was(net: AudioLanguageModel) -> None:
    """Four answers that grow past six pages: someone gives way, and nothing is said twice."""
    engine = Engine(net, [], cache_bytes=bytes_of(net, 6))
    prompts = [
        Prompt([i] * 20, (), GenerationParams(max_tokens=60, temperature=1.0, seed=i))
        for i in range(4)
    ]
    alone = [Engine(net, []).generate([p])[0].tokens for p in prompts]
    assert [r.tokens for r in engine.generate(prompts)] == alone
    assert engine.stats().preemptions > 0


def test_the_same_seed_gives_the_same_tokens(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])

    def sample(seed: int) -> list[int]:
        return answer(engine, [1, 2, 3], max_tokens=24, temperature=1.5, seed=seed).tokens

    assert sample(5) == sample(5)
    assert sample(5) != sample(6)


def test_stops_at_the_end_token_and_at_the_limits(net: AudioLanguageModel) -> None:
    free = answer(Engine(net, []), [1, 2, 3], max_tokens=6)
    assert free.stopped == "length"
    assert len(free.tokens) == 6
    end = free.tokens[2]
    ended = answer(Engine(net, [end]), [1, 2, 3], max_tokens=6)
    assert ended.tokens == free.tokens[: free.tokens.index(end)]
    assert ended.stopped == "end"
    short = answer(Engine(net, [], max_context=5), [1, 2, 3], max_tokens=6)
    assert len(short.tokens) == 2
    assert short.stopped == "length"


def test_two_requests_interleaved_do_not_mix(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    prompts = [[1, 2, 3], [9, 8, 7, 6]]
    alone = [answer(engine, ids, max_tokens=12).tokens for ids in prompts]
    params = GenerationParams(max_tokens=12)
    mixed = list(zip(*(engine.submit(ids, (), params) for ids in prompts), strict=True))
    assert [list(column) for column in zip(*mixed, strict=True)] == alone


def test_modules_give_what_packed_weights_give(
    net: AudioLanguageModel, expected: list[list[int]]
) -> None:
    """Devices without packing, and models with adapters, run the network's own modules."""
    engine = Engine(net, [])
    engine.runner._packed = None
    engine.runner.refresh = lambda: False  # type: ignore[method-assign]
    assert [r.tokens for r in engine.generate(mixed_prompts())] == expected


def test_a_profile_names_the_phases(net: AudioLanguageModel) -> None:
    """Also the decoder's layers, which torch does not see otherwise."""
    engine, clip = Engine(net, eos=()), window(0.5)
    everybody = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], experimental_config=everybody
    ) as profile:
        answer(engine, heard([clip], [1], [2]), clip, max_tokens=3)
    counts = {event.key: event.count for event in profile.key_averages()}
    phases = ("afnext.encode", "afnext.prefill", "afnext.decode", "afnext::decoder")
    assert [counts.get(name) for name in phases] == [1, 1, 2, 3]


def test_timings_are_filled_in(net: AudioLanguageModel) -> None:
    clip = window(0.5)
    t = answer(Engine(net, []), heard([clip], [1], [2]), clip, max_tokens=16).timings
    assert min(t.mel, t.encode, t.prefill, t.generate, t.tokens_per_second) > 0
    assert t.first_token >= t.mel + t.encode + t.prefill
    assert t.total >= t.first_token
    assert 0 < t.gigabytes_per_second < 1000


def test_the_time_outside_of_the_model_is_told(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    answer(engine, [1, 2, 3], max_tokens=50)
    stats = engine.stats()
    assert 0 < stats.model_seconds < stats.step_seconds


@pytest.mark.parametrize(
    ("ids", "windows", "said"),
    [
        ([], [], "empty"),
        ([1] * 600, [], "600 tokens"),
        ([1, SOUND, 2], [], "placeholders"),
        ([1, 2], [window(0.5)], "placeholders"),
        ([1, 64], [], "from 0 to 63"),
        ([-1], [], "from 0 to 63"),
        ([1.5], [], r"^ids: must be a list of whole numbers, got \[1\.5\]$"),
        ("abc", [], "^ids: must be a list of whole numbers, got 'abc'$"),
        ([[1, 2]], [], "^ids: must be a list of whole numbers"),
        (None, [], "^ids: must be a list of whole numbers, got None$"),
    ],
)
def test_bad_prompts_are_refused(
    net: AudioLanguageModel, ids: Any, windows: list[AudioWindow], said: str
) -> None:
    engine = Engine(net, [])
    with pytest.raises(ValueError, match=said):
        engine.submit(ids, windows)
    assert engine.stats().waiting == 0


def test_more_than_the_cache_holds_is_refused_at_once(net: AudioLanguageModel) -> None:
    engine = Engine(net, [], cache_bytes=bytes_of(net, 3))
    with pytest.raises(ValueError, match=r"96 tokens.*cache_bytes.*room for 96"):
        engine.submit([1] * 96)
    assert len(answer(engine, [1] * 95, max_tokens=5).tokens) == 1


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"cache_bytes": 10}, "cache_bytes"),
        ({"audio_cache_bytes": -1}, "audio_cache_bytes"),
        ({"max_running": 0}, "max_running"),
        ({"max_running": 8, "max_step_tokens": 7}, "max_running"),
        ({"max_running": 1.5}, "max_running"),
        ({"max_step_tokens": 1.5}, "max_step_tokens"),
        ({"max_step_tokens": 0}, "max_step_tokens"),
        ({"max_context": 0}, "max_context: must be a whole number from 2 to 512, got 0"),
        ({"max_context": -5}, "max_context"),
        ({"max_context": 513}, "max_context"),
        ({"max_context": "x"}, "max_context"),
        ({"max_context": True}, "max_context"),
        ({"cache_bytes": 0}, "cache_bytes"),
        ({"cache_bytes": 1e9}, "cache_bytes"),
    ],
)
def test_limits_that_leave_no_room_are_refused(
    net: AudioLanguageModel, limits: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        Engine(net, [], **limits)


@pytest.mark.parametrize(
    "params",
    [{"stop": ["x"]}, {"regex": "[0-9]+"}, {"choice": ["a"]}, {"json_schema": {}}],
    ids=str,
)
def test_what_needs_texts_is_refused(net: AudioLanguageModel, params: dict[str, Any]) -> None:
    """It would be ignored: tokens are all that the engine knows."""
    with pytest.raises(ValueError, match=f"^{next(iter(params))}: "):
        Engine(net, []).submit([1, 2], params=GenerationParams(**params))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(temperature: float, value: float) -> None:
    """Of a broken model, say: it must not answer with its first token for ever."""
    net = small_model()
    with torch.no_grad():
        net.language_model.model.norm.weight.fill_(value)
    params = GenerationParams(max_tokens=4, temperature=temperature)
    with pytest.raises(RuntimeError, match="the model's logits are no numbers"):
        Engine(net, []).submit([1, 2, 3], params=params).result()
