"""Keys and values in 8 bits: half the memory, nearly the same answers, and still the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import afnext
from afnext.engine import Engine, GenerationParams, Prompt
from afnext.engine.engine import PAGE_SIZE
from afnext.engine.pages import KV_CACHE_DTYPES, PagePool, Sequence, kv_dtype, page_bytes
from afnext.engine.runner import Chunk, Runner
from afnext.hub import find_model
from afnext.model import AudioLanguageModel, ModelConfig
from tests.engine.models import heard, window

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def recording(seed: int) -> np.ndarray:
    """A tone, noise and clicks, of other kinds for every seed; 3 to 6 s."""
    rng = np.random.default_rng(seed)
    time = np.arange(16_000 * (3 + seed % 4)) / 16_000
    tone = (
        0.3 * np.sin(2 * np.pi * rng.uniform(100, 3000) * time) * (time % rng.uniform(0.3, 2) < 0.3)
    )
    return (tone + rng.uniform(0, 0.1) * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def nano() -> AudioLanguageModel:
    return AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32)


def modules_only(engine: Engine) -> Engine:
    """An engine without packed weights, as on devices that have none."""
    engine.runner._packed = None
    engine.runner.refresh = lambda: False  # type: ignore[method-assign]
    return engine


def test_answers_are_nearly_all_the_same() -> None:
    """Greedy answers to two questions about six recordings; one flipped token may change a tail."""
    exact = afnext.load("nano", dtype="float32")
    small = afnext.load("nano", dtype="float32", kv_cache_dtype="int8")
    questions = ("What sounds do you hear?", "Describe the recording.")
    asked = [(recording(seed), q) for seed in range(6) for q in questions]
    said = [[m.ask(clip, q, max_tokens=24).text for clip, q in asked] for m in (exact, small)]
    assert len(set(said[0])) > 4  # otherwise it would prove little
    assert sum(a == b for a, b in zip(*said, strict=True)) >= 10
    assert small.engine.runner.kv_dtype == torch.int8


@torch.inference_mode()
@pytest.mark.parametrize("packed", [True, False])
def test_logits_are_close_to_the_plain_forward(nano: AudioLanguageModel, packed: bool) -> None:
    """Read in two pieces, then token by token. A key or value is off by at most half a 127th of its row's
    peak, some 0.4 % of a typical entry's size summed over many: 2 % of the logits' spread holds with room,
    and a wrong scale or page is off by more than their spread."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(5, 1000, (90,), generator=generator)
    runner = Runner(nano, kv_cache_dtype="int8")
    if not packed:
        runner._packed = None
    sequence = Sequence(runner.new_pool(96, 16), 96)
    table = nano.language_model.model.embed_tokens
    ours = [runner.prefill(table(ids[:40]), sequence), runner.prefill(table(ids[40:70]), sequence)]
    ours += [runner.decode(int(token), sequence) for token in ids[70:]]
    expected = nano(ids[None])[0][[39, 69, *range(70, 90)]]
    off = (torch.stack(ours) - expected).norm() / (expected - expected.mean(-1, True)).norm()
    assert 1e-5 < off < 0.02  # not less than rounding to 8 bits must cost


def chunks(ids: Items[int], table: Items[int], cuts: Items[int]) -> list[Chunk]:
    edges = [0, *cuts, len(ids)]
    pages = np.array(table, np.int32)
    return [Chunk(ids[a:b], a, pages) for a, b in pairwise(edges)]


@torch.inference_mode()
@pytest.mark.parametrize("quantization", [None, "int4"])
def test_a_batch_gives_the_very_bits_of_a_request_alone(
    net: AudioLanguageModel, quantization: str | None
) -> None:
    runner = Runner(net, quantization, kv_cache_dtype="int8")
    first, second = list(range(40)), [i * 7 % 59 for i in range(23)]
    steps = [chunks(first, [0, 2, 4], [17, 39]), chunks(second, [1, 3, 5], [9, 22])]
    together = runner.new_pool(96, 16)
    mixed: list[Tensor] = [runner.step(both, together) for both in zip(*steps, strict=True)]
    for row, own in enumerate(steps):
        pool = runner.new_pool(96, 16)
        for step, chunk in enumerate(own):
            assert torch.equal(runner.step([chunk], pool)[0], mixed[step][row])


@pytest.mark.parametrize("packed", [True, False])
def test_an_engine_says_the_same_to_many_as_to_one(net: AudioLanguageModel, packed: bool) -> None:
    """With shared prefixes, pages that run out, prompts cut by steps; twice over what is cached."""
    late = window(1.3, 1, start=30.0)
    params = GenerationParams(max_tokens=30)
    prompts = [
        Prompt(list(range(40)), (), params),
        Prompt(heard([late], [1, 2], [3]), [late], params),
        Prompt([i % 50 for i in range(200)], (), params),
        Prompt([i % 50 for i in range(200)] + [9], (), params),
        Prompt([5, 6], (), replace(params, temperature=1.0, seed=3)),
    ]

    def engine(**limits: int) -> Engine:
        made = Engine(net, [], kv_cache_dtype="int8", **limits)
        return made if packed else modules_only(made)

    alone = [engine().generate([p])[0].tokens for p in prompts]
    page = page_bytes(net.config.text, PAGE_SIZE, torch.int8)
    small = engine(cache_bytes=9 * page, max_step_tokens=32, max_running=8)
    assert small.stats().pages == 9
    assert small.stats().page_bytes == page
    for _ in range(2):
        assert [r.tokens for r in small.generate(prompts)] == alone
    assert small.stats().free_pages == 9
    assert small.stats().cached_tokens > 0
    assert small.stats().evicted_pages > 0
    assert len({tuple(a) for a in alone}) == len(prompts)


def test_memory_is_half() -> None:
    """Of half an hour, 45,000 tokens, at the released geometry: what a pool takes, and what is said of it."""
    config = replace(
        ModelConfig.from_folder(find_model("nano")).text,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, head_dim=128,
    )  # fmt: skip
    pages = -(-45_000 // PAGE_SIZE)
    sizes = {}
    for dtype in (torch.bfloat16, torch.int8):
        pool = PagePool(config, pages, PAGE_SIZE, dtype, torch.device("meta"))
        parts = [*pool.keys, *pool.values, *(pool.k_scales or ()), *(pool.v_scales or ())]
        sizes[dtype] = sum(p.nbytes for p in parts)
        assert sizes[dtype] == pages * page_bytes(config, PAGE_SIZE, dtype)
    assert 2.4 < sizes[torch.bfloat16] / 2**30 < 2.45
    assert sizes[torch.int8] < 0.52 * sizes[torch.bfloat16]  # a scale beside 128 values


def test_twice_the_context_fits(net: AudioLanguageModel) -> None:
    text = net.config.text
    room = 4 * page_bytes(text, PAGE_SIZE, torch.float32)
    wide, small = (Engine(net, [], cache_bytes=room, kv_cache_dtype=d) for d in (None, "int8"))
    assert wide.max_context == 4 * PAGE_SIZE
    assert small.max_context == 3 * wide.max_context  # 16 float32 against 16 int8 and a scale
    ids = [i % 50 for i in range(300)]
    with pytest.raises(ValueError, match="cache_bytes"):
        wide.submit(ids)
    assert len(small.submit(ids, (), GenerationParams(max_tokens=4)).result().tokens) == 4


def test_what_a_step_reads_is_told(net: AudioLanguageModel) -> None:
    runners = [Runner(net), Runner(net, kv_cache_dtype="int8")]
    exact, small = (r.cache_bytes(1) for r in runners)
    text = net.config.text
    rows = 2 * text.num_hidden_layers * text.num_key_value_heads
    assert exact == 4 * rows * text.head_dim
    assert small == rows * (text.head_dim + 4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int4", "must be one of int8, fp8, got 'int4'"),
        ("", "must be one of"),
        ("fp8", "fp8 needs CUDA, got device cpu: take int8"),
    ],
)
def test_what_cannot_be_is_refused(net: AudioLanguageModel, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^kv_cache_dtype: .*{said}"):
        Engine(net, [], kv_cache_dtype=name)
    with pytest.raises(ValueError, match=f"^kv_cache_dtype: .*{said}"):
        afnext.load("nano", device="cpu", kv_cache_dtype=name)


def test_fp8_is_for_cuda() -> None:
    assert kv_dtype("fp8", torch.bfloat16, torch.device("cuda")) == KV_CACHE_DTYPES["fp8"]
    assert kv_dtype(None, torch.bfloat16, CPU) == torch.bfloat16
