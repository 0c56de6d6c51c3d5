"""An engine that runs for long holds no more than at first."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest

from afnext.engine import Engine, GenerationParams, Prompt
from afnext.model import AudioLanguageModel

BATCH, LENGTH = 200, 100
ROUNDS = 5  # 100,000 tokens


@pytest.mark.slow
def test_python_memory_does_not_grow_over_100_000_tokens(net: AudioLanguageModel) -> None:
    """Two hundred answers of 100 tokens at a time. What a round leaves behind (pages that are kept, their
    digests) is bounded by the cache, which the first round fills; an object for every 50 tokens, or a byte a
    token, would be seen."""
    page = Engine(net, []).page_bytes
    engine = Engine(net, [], cache_bytes=1000 * page, max_running=BATCH)

    def answer(number: int) -> int:
        params = GenerationParams(max_tokens=LENGTH)
        prompts = [Prompt([1 + number, i % 50, i // 50], (), params) for i in range(BATCH)]
        return sum(len(g.tokens) for g in engine.generate(prompts))

    def blocks() -> int:
        gc.collect()
        return sys.getallocatedblocks()

    answer(0)
    before = blocks()
    for number in range(1, ROUNDS - 1):
        assert answer(number) == BATCH * LENGTH
    tracemalloc.start()
    try:  # bytes in the last two rounds: tracing makes them slow
        held = []
        for number in range(ROUNDS - 1, ROUNDS + 1):
            assert answer(number) == BATCH * LENGTH
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    grown = blocks() - before
    assert engine.stats().tokens == (1 + ROUNDS) * BATCH * LENGTH
    assert engine.stats().evicted_pages > 0  # the cache is full: what is kept cannot grow
    assert grown < BATCH * LENGTH * ROUNDS // 50, grown
    assert held[1] - held[0] < BATCH * LENGTH, held
