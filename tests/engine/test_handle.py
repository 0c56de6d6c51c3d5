"""Requests from outside: cancelled, forgotten, late, failing, asked for by threads and by asyncio."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from afnext.engine import Engine, GenerationParams, Handle, Prompt, request, stepper
from afnext.engine.pace import Pace
from afnext.engine.runner import Chunk
from afnext.model import AudioLanguageModel
from tests.engine.models import heard, window

LONG = GenerationParams(max_tokens=400)


def free(engine: Engine) -> bool:
    """Whether nobody holds a page."""
    stats = engine.stats()
    return (stats.free_pages, stats.running, stats.waiting) == (stats.pages, 0, 0)


def tokens(engine: Engine, ids: Sequence[int], count: int = 12) -> list[int]:
    return engine.submit(ids, (), GenerationParams(max_tokens=count)).result().tokens


def before_each_step(engine: Engine, act: Callable[[Sequence[Chunk]], None]) -> None:
    """``act`` while a step is running."""
    step = engine.runner.step

    def wrapped(chunks: Sequence[Chunk], pool: Any) -> torch.Tensor:
        act(chunks)
        return step(chunks, pool)

    engine.runner.step = wrapped  # type: ignore[method-assign]


def test_cancelling_frees_the_pages_at_once(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    handle = engine.submit([1, 2, 3], (), LONG)
    first = next(handle)
    assert not free(engine)
    handle.cancel()
    assert free(engine)
    assert list(handle) == []
    assert handle.record.tokens == [first]
    assert handle.record.stopped == "cancelled"


def test_a_waiting_request_can_be_cancelled(net: AudioLanguageModel) -> None:
    engine = Engine(net, [], max_running=1)
    first, second = (engine.submit([1, 2], (), LONG) for _ in range(2))
    next(first)
    second.close()
    assert engine.stats().waiting == 0
    assert len(first.result().tokens) == 400


def test_a_forgotten_iterator_is_a_cancellation(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    handle = engine.submit([1, 2, 3], (), LONG)
    next(handle)
    del handle
    gc.collect()
    assert free(engine)
    several = engine.submit([1, 2], (), GenerationParams(n=3, temperature=1.0))
    next(several)
    kept = several.samples[1]
    del several
    gc.collect()
    assert engine.stats().running == 1
    assert len(kept.result().tokens) > 1
    assert free(engine)


def test_a_cancellation_while_books_are_kept_waits_for_their_end(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that is collected cancels wherever its thread is: between a step's plan and its start."""
    engine = Engine(net, [])
    alone = tokens(engine, [5, 6, 7])
    given_up = engine.submit([1, 2, 3], (), LONG)
    next(given_up)
    held, schedule = [], engine.scheduler.schedule

    def collects(limit: int) -> list[Any]:
        parts = schedule(limit)
        if not given_up.record.stopped:
            given_up.cancel()
            held.append(any(p.request is given_up._request and p.request.pages for p in parts))
        return parts

    monkeypatch.setattr(engine.scheduler, "schedule", collects)
    assert tokens(engine, [5, 6, 7]) == alone
    assert held == [True]  # what is about to be computed has its pages
    assert given_up.record.stopped == "cancelled"
    assert free(engine)


def test_nobody_who_cancels_waits_for_long(net: AudioLanguageModel) -> None:
    """Who holds what another thread waits for under the lock must not wait for that."""
    engine = Engine(net, [])
    handle = engine.submit([1, 2, 3], (), LONG)
    next(handle)
    with ThreadPoolExecutor(1) as pool, engine.lock:
        pool.submit(handle.cancel).result(30)
    assert free(engine)
    assert handle.record.stopped == "cancelled"


def test_cancelled_while_its_step_runs(net: AudioLanguageModel) -> None:
    """Its pages are in use until the step ends, and free then; the others' tokens are right."""
    engine = Engine(net, [])
    alone = tokens(engine, [5, 6, 7])
    victim = engine.submit([1, 2, 3], (), LONG)
    other = engine.submit([5, 6, 7], (), GenerationParams(max_tokens=12))

    ended = []

    def cancel(chunks: Sequence[Chunk]) -> None:
        if len(victim.record.tokens) == 3 and not victim.finished:
            victim.cancel()
            ended.append(victim.finished)

    before_each_step(engine, cancel)
    assert other.result().tokens == alone
    assert ended == [False]
    assert len(victim.record.tokens) == 3
    assert victim.record.stopped == "cancelled"
    assert free(engine)


def test_a_late_answer_ends_where_it_is(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock is played."""
    now = [0.0]
    for module in (request, stepper):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    engine = Engine(net, [], max_running=1)
    hurried = GenerationParams(max_tokens=400, timeout=0.05)
    running = engine.submit([1, 2], (), hurried)
    waiting = engine.submit([3, 4], (), hurried)

    def passes(chunks: Sequence[Chunk]) -> None:
        now[0] += 0.02

    before_each_step(engine, passes)
    assert running.result().stopped == waiting.result().stopped == "timeout"
    assert 1 <= len(running.record.tokens) <= 3
    assert waiting.record.tokens == []
    assert free(engine)


@pytest.mark.parametrize("error", [RuntimeError("the device is gone"), MemoryError()])
def test_a_failed_step_fails_its_request_and_no_other(
    net: AudioLanguageModel, error: Exception
) -> None:
    engine = Engine(net, [], max_running=1)
    alone = tokens(engine, [5, 6, 7])
    fails = engine.submit([1, 2, 3], (), LONG)
    waits = engine.submit([5, 6, 7], (), GenerationParams(max_tokens=12))

    def fail(chunks: Sequence[Chunk]) -> None:
        if len(fails.record.tokens) == 2 and not fails.finished:
            raise error

    before_each_step(engine, fail)
    with pytest.raises(type(error)):
        list(fails)
    assert waits.result().tokens == alone
    assert free(engine)


@pytest.mark.parametrize("limit", [0, 250, 310])
def test_a_step_that_is_too_large_is_made_in_parts(
    net: AudioLanguageModel, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails alone fails, whoever it shared a step with does not, nor what fits alone."""
    engine = Engine(net, [])
    monkeypatch.setattr(Pace, "took", lambda *_: None)  # a slow machine takes smaller steps
    params = GenerationParams(max_tokens=12, temperature=1.0, seed=4, speculate=2)
    prompts = [[5, 6, 7], [i % 50 for i in range(300)], [9, 8] * 9]
    alone = [engine.submit(ids, (), params).result().tokens for ids in prompts]
    engine.clear_caches()
    talking = engine.submit(prompts[0], (), params)
    next(talking)
    others = [engine.submit(ids, (), params) for ids in prompts[1:]]
    tried: list[list[int]] = []

    def fail(chunks: Sequence[Chunk]) -> None:
        tried.append([len(c.ids) for c in chunks])
        if sum(tried[-1]) > limit and 300 in tried[-1]:
            raise MemoryError

    before_each_step(engine, fail)
    assert others[1].result().tokens == alone[2]
    assert talking.result().tokens == alone[0]
    if limit < 300:
        with pytest.raises(MemoryError):
            others[0].result()
    else:
        assert others[0].result().tokens == alone[1]
    assert [len(counts) for counts in tried[:4]] == [3, 1, 1, 1]
    assert tried[1:3] == [[300], [18]]
    assert free(engine)


class Exact(RuntimeError):
    """Cannot be copied."""

    def __init__(self, *, code: int) -> None:
        super().__init__("one of its kind")
        self.code = code


@pytest.mark.parametrize("error", [RuntimeError("no weights"), Exact(code=3)])
def test_each_request_has_its_own_exception(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Threads that raise the same one write into one traceback."""
    engine = Engine(net, [])

    def broken() -> bool:
        raise error

    monkeypatch.setattr(engine.runner, "refresh", broken)
    handles = [engine.submit([n], (), LONG) for n in range(3)]
    for handle in handles:
        with pytest.raises(type(error), match=str(error)):
            handle.result()
    found = [h.error for h in handles]
    if isinstance(error, Exact):
        assert found == [error] * 3
    else:
        assert len({id(e) for e in found}) == 3
        assert all(e is not None and e.__cause__ is error for e in found)


def test_audio_that_cannot_be_encoded_fails_alone(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(net, [])
    alone = tokens(engine, [5, 6, 7])
    clip = window(0.5)

    def broken(audio: object) -> torch.Tensor:
        raise RuntimeError("no such sound")

    monkeypatch.setattr(engine.runner, "encode", broken)
    fails = engine.submit(heard([clip], [1], [2]), [clip], LONG)
    other = engine.submit([5, 6, 7], (), GenerationParams(max_tokens=12))
    assert other.result().tokens == alone
    with pytest.raises(RuntimeError, match="no such sound"):
        fails.result()
    assert free(engine)


def test_who_is_interrupted_loses_nothing(net: AudioLanguageModel) -> None:
    """Control-C reaches the main thread, which waits; the step that is being made goes on."""
    engine = Engine(net, [])
    alone = tokens(engine, [5, 6, 7])
    asked = [engine.submit([5, 6, 7], (), GenerationParams(max_tokens=12)) for _ in range(2)]
    due, main, goes_on = {4, 6}, threading.main_thread().ident, threading.Event()
    assert main is not None

    def interrupt(chunks: Sequence[Chunk]) -> None:
        if (said := len(asked[0].record.tokens)) in due:
            due.remove(said)
            goes_on.clear()
            signal.pthread_kill(main, signal.SIGINT)
            goes_on.wait(60)

    def go_on_and_wait(handle: Handle) -> None:
        goes_on.set()
        handle.result()

    before_each_step(engine, interrupt)
    # Where tests run in the background, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(asked[0])
        with pytest.raises(KeyboardInterrupt):
            go_on_and_wait(asked[1])
    finally:
        goes_on.set()
        signal.signal(signal.SIGINT, before)
    asked[0].cancel()
    assert asked[1].result().tokens == alone
    assert asked[0].record.stopped == "cancelled"
    assert free(engine)


def test_nobody_waits_for_a_device(
    net: AudioLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a step has run when its tokens are there; who submits, cancels or looks need not know them."""
    engine, within, go = Engine(net, []), threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> list[int | None]:
        within.set()
        assert go.wait(30)
        time.sleep(0.02)
        return sampled(*arguments)

    sampled = stepper.sampled
    monkeypatch.setattr(stepper, "sampled", slowly)
    first, second = (engine.submit([n, 3], (), GenerationParams(max_tokens=2)) for n in (1, 2))
    with ThreadPoolExecutor(3) as pool:
        answer = pool.submit(first.result)
        assert within.wait(30)
        for act in (engine.stats, second.cancel, lambda: engine.submit([3], (), LONG)):
            pool.submit(act).result(10)
        go.set()
        assert len(answer.result().tokens) == 2
    assert second.record.tokens == []
    assert first.record.timings.prefill >= 0.02


def test_generate_gives_up_the_rest_when_one_fails(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    with pytest.raises(ValueError, match="empty"):
        engine.generate([Prompt([1, 2], (), LONG), Prompt([])])
    assert free(engine)


def test_threads_that_ask_at_once_are_answered_together(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    prompts = [[i, i + 1, 2] for i in range(20)]
    alone = [tokens(engine, ids, 60) for ids in prompts]
    before = engine.stats().steps
    start = threading.Barrier(len(prompts))

    def ask(ids: list[int]) -> list[int]:
        start.wait()
        return list(engine.submit(ids, (), GenerationParams(max_tokens=60)))

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, prompts)) == alone
    # At most 60 steps for each would be one by one; threads do not start at the very same moment.
    assert engine.stats().steps - before < 20 * 60 / 4
    assert free(engine)


def test_tasks_that_ask_at_once_are_answered_together(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    prompts = [[i, i + 1, 2] for i in range(20)]
    alone = [tokens(engine, ids, 30) for ids in prompts]
    before = engine.stats().steps

    async def ask(ids: list[int]) -> list[int]:
        return [t async for t in engine.submit(ids, (), GenerationParams(max_tokens=30))]

    async def everybody() -> list[list[int]]:
        return await asyncio.gather(*map(ask, prompts))

    assert asyncio.run(everybody()) == alone
    assert engine.stats().steps - before < 20 * 30 / 4
    assert free(engine)


def test_a_cancelled_task_cancels_its_request(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])

    async def give_up() -> Handle:
        handle = engine.submit([1, 2, 3], (), LONG)

        async def read() -> None:
            async for _ in handle:
                pass

        task = asyncio.create_task(read())
        while not handle.record.tokens:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return handle

    handle = asyncio.run(give_up())
    list(handle)  # it may be part of a step
    assert handle.record.stopped == "cancelled"
    assert free(engine)


def test_waiting_for_several_returns_those_that_moved(net: AudioLanguageModel) -> None:
    engine = Engine(net, [], max_running=1)
    first, second = (engine.submit([i, 2], (), GenerationParams(max_tokens=2)) for i in range(2))
    assert engine.wait([first, second]) == [first]
    assert len(first.take()) == 1
    assert engine.wait([first, second]) == [first]
    first.take()
    assert first.exhausted
    assert engine.wait([second]) == [second]
    assert engine.wait([]) == []
