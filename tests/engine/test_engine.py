"""The engine over its paged cache against the whole model recomputed at every token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afnext.audio import AudioWindow
from afnext.engine import Engine, GenerationParams
from afnext.engine import runner as runner_module
from afnext.model import AudioBatch, AudioLanguageModel, ModelConfig

SOUND = 61


@pytest.fixture(scope="module")
def net() -> AudioLanguageModel:
    """A small random model whose next token depends on everything before it."""
    config = ModelConfig.from_dict(
        {
            "model_type": "musicflamingo",
            "audio_token_id": SOUND,
            "audio_bos_token_id": 59,
            "audio_eos_token_id": 60,
            "audio_config": {
                "hidden_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
            },
            "text_config": {
                "vocab_size": 64,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
            },
        }
    )
    torch.manual_seed(3)
    model = AudioLanguageModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "positions" not in name:
                p.normal_(0, 1.5 * p[0].numel() ** -0.5)
    return model


def window(seconds: float, seed: int = 0) -> AudioWindow:
    samples = np.random.default_rng(seed).standard_normal(int(seconds * 16_000)).astype(np.float32)
    return AudioWindow(samples * 0.1, 0, len(samples))


def recomputed(
    net: AudioLanguageModel, ids: list[int], windows: list[AudioWindow], count: int
) -> list[int]:
    """Greedy tokens of the full forward, over the whole sequence each time."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            logits = net(torch.tensor([ids]), AudioBatch.collate([windows]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[-count:]


def test_greedy_equals_the_full_forward(net: AudioLanguageModel) -> None:
    """64 tokens, audio in the prompt: prefill, append and paged decode give what recomputing gives."""
    windows = [window(0.5), window(0.9, 1)]
    ids = [1, *[SOUND] * windows[0].num_tokens, 2, 3, *[SOUND] * windows[1].num_tokens, 4]
    record, tokens = Engine(net, [63]).generate(ids, windows, GenerationParams(max_tokens=64))
    got = list(tokens)
    expected = recomputed(net, ids, windows, 64)
    if 63 in expected:
        expected = expected[: expected.index(63)]
    assert got == expected == record.tokens
    assert record.audio_tokens == sum(w.num_tokens for w in windows)
    assert len(set(got)) > 3  # a constant answer would prove nothing


def test_chunked_prefill_changes_nothing(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [i % 60 for i in range(100)]
    whole = list(Engine(net, [63]).generate(ids, (), GenerationParams(max_tokens=8))[1])
    monkeypatch.setattr(runner_module, "PREFILL_CHUNK", 7)
    assert list(Engine(net, [63]).generate(ids, (), GenerationParams(max_tokens=8))[1]) == whole


def test_the_same_seed_gives_the_same_tokens(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])

    def sample(seed: int) -> list[int]:
        params = GenerationParams(max_tokens=24, temperature=1.5, seed=seed)
        return list(engine.generate([1, 2, 3], (), params)[1])

    assert sample(5) == sample(5)
    assert sample(5) != sample(6)


def test_stops_at_the_end_token_and_at_the_limits(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    record, tokens = engine.generate([1, 2, 3], (), GenerationParams(max_tokens=6))
    free = list(tokens)
    assert record.stopped == "length"
    assert len(free) == 6
    ends = Engine(net, [free[2]])
    record, tokens = ends.generate([1, 2, 3], (), GenerationParams(max_tokens=6))
    assert list(tokens) == free[: free.index(free[2])]
    assert record.stopped == "end"
    short = Engine(net, [], max_context=5)
    record, tokens = short.generate([1, 2, 3], (), GenerationParams(max_tokens=6))
    assert len(list(tokens)) == 2
    assert record.stopped == "length"


def test_closing_early_frees_the_cache(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    _, tokens = engine.generate([1, 2, 3], (), GenerationParams(max_tokens=50))
    next(tokens)
    assert engine._pool is not None
    assert engine._pool.free_pages < engine._pool.num_pages
    tokens.close()
    assert engine._pool.free_pages == engine._pool.num_pages


def test_two_requests_interleaved_do_not_mix(net: AudioLanguageModel) -> None:
    engine, params = Engine(net, []), GenerationParams(max_tokens=12)
    alone = [list(engine.generate(ids, (), params)[1]) for ids in ([1, 2, 3], [9, 8, 7, 6])]
    first = engine.generate([1, 2, 3], (), params)[1]
    second = engine.generate([9, 8, 7, 6], (), params)[1]
    mixed = list(zip(first, second, strict=True))
    assert [list(column) for column in zip(*mixed, strict=True)] == alone


def test_a_profile_names_the_phases(net: AudioLanguageModel) -> None:
    """Also the decoder's layers, which torch does not see otherwise."""
    engine, clip = Engine(net, eos=()), window(0.5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ids = [1, *[SOUND] * clip.num_tokens, 2]
        _, tokens = engine.generate(ids, [clip], GenerationParams(max_tokens=3))
        list(tokens)
    counts = {event.key: event.count for event in profile.key_averages()}
    phases = ("afnext.embed", "afnext.prefill", "afnext.decode", "afnext::decoder")
    assert [counts.get(name) for name in phases] == [1, 1, 2, 3]


def test_timings_are_filled_in(net: AudioLanguageModel) -> None:
    windows = [window(0.5)]
    ids = [1, *[SOUND] * windows[0].num_tokens, 2]
    record, tokens = Engine(net, []).generate(ids, windows, GenerationParams(max_tokens=16))
    list(tokens)
    t = record.timings
    assert min(t.mel, t.encode, t.prefill, t.generate, t.tokens_per_second) > 0
    assert t.first_token >= t.mel + t.encode + t.prefill
    assert t.total >= t.first_token
    assert 0 < t.gigabytes_per_second < 1000


@pytest.mark.parametrize(
    ("ids", "windows", "said"),
    [
        ([], [], "empty"),
        ([1] * 600, [], "600 tokens"),
        ([1, SOUND, 2], [], "placeholders"),
        ([1, 2], [window(0.5)], "placeholders"),
    ],
)
def test_bad_prompts_are_refused(
    net: AudioLanguageModel, ids: list[int], windows: list[AudioWindow], said: str
) -> None:
    engine = Engine(net, [])
    with pytest.raises(ValueError, match=said):
        list(engine.generate(ids, windows)[1])
    assert engine._pool is None or engine._pool.free_pages == engine._pool.num_pages
