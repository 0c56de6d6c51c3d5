"""Who makes steps, and for how long: one thread for all who wait, that ends with its engine."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from afnext.engine import STREAM, WHOLE, Engine, GenerationParams
from afnext.engine.driver import _Waiter
from afnext.engine.runner import Chunk
from afnext.model import AudioLanguageModel

PATIENCE = 30.0
SHORT = GenerationParams(max_tokens=12)


def happens(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def in_each_step(engine: Engine, act: Callable[[], object]) -> None:
    step = engine.runner.step

    def wrapped(chunks: Sequence[Chunk], pool: Any) -> torch.Tensor:
        act()
        return step(chunks, pool)

    engine.runner.step = wrapped  # type: ignore[method-assign]


def stalled(go: threading.Event) -> Iterator[tuple[list[int], list[Any]]]:
    go.wait(PATIENCE)
    yield [3], []


def test_whoever_asks_one_thread_makes_all_steps(net: AudioLanguageModel) -> None:
    """Each that does keeps OpenMP threads and a device's workspaces of its own."""
    engine, made = Engine(net, []), set()
    in_each_step(engine, lambda: made.add(threading.get_ident()))

    async def several() -> None:
        await asyncio.gather(*(one() for _ in range(5)))

    async def one() -> None:
        assert len([t async for t in engine.submit([1, 2], (), SHORT)]) == 12

    def ask(_: int) -> int:
        asyncio.run(several())
        return len(engine.submit([1, 2], (), SHORT).result().tokens)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [12] * 4
    assert ask(0) == 12
    assert len(made) == 1
    assert threading.get_ident() not in made


def test_tasks_that_wait_take_no_thread(net: AudioLanguageModel) -> None:
    """However many wait for slow sources, who asks a short question is answered."""
    engine, go = Engine(net, []), threading.Event()

    async def ask(handle: Any) -> list[int]:
        return [t async for t in handle]

    async def everybody() -> None:
        nobody = ThreadPoolExecutor(1)
        nobody.shutdown()
        asyncio.get_running_loop().set_default_executor(nobody)
        slow = [engine.submit([1, n], (), SHORT, stalled(go)) for n in range(8)]
        waiting = [asyncio.create_task(ask(h)) for h in slow]
        await asyncio.sleep(0)
        assert len(await ask(engine.submit([1, 2], (), SHORT))) == 12
        go.set()
        assert [len(t) for t in await asyncio.gather(*waiting)] == [12] * 8

    asyncio.run(everybody())


def test_the_thread_ends_with_its_engine(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    handle = engine.submit([1, 2], (), SHORT)
    assert engine._driver._thread is None  # nobody waits
    next(handle)
    thread, gone = engine._driver._thread, weakref.ref(engine)
    assert thread is not None
    del engine, handle
    gc.collect()
    assert happens(lambda: gone() is None)  # the thread may be about to let go
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_no_steps_are_made_for_nobody(net: AudioLanguageModel) -> None:
    engine = Engine(net, [])
    handle = engine.submit([1, 2], (), GenerationParams(max_tokens=400))
    next(handle)
    steps = engine.stats().steps
    time.sleep(0.05)
    assert engine.stats().steps == steps


def test_it_wakes_when_what_it_waits_for_is_forgotten(net: AudioLanguageModel) -> None:
    engine, go = Engine(net, []), threading.Event()
    handle = engine.submit([1, 2], (), SHORT, stalled(go))
    other = engine.submit([1, 2], (), SHORT, stalled(go))
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(engine.wait, [other])
        assert happens(lambda: engine._driver.idle)
        del handle
        gc.collect()
        assert happens(lambda: len(engine.scheduler.waiting) + len(engine.scheduler.running) == 1)
        go.set()
        assert waits.result(PATIENCE) == [other]


def test_what_a_caller_has_set_for_its_thread_is_not_in_force(net: AudioLanguageModel) -> None:
    """But for the number of torch's threads, which torch keeps for each thread too."""
    engine, seen = Engine(net, []), set()
    threads = torch.get_num_threads()
    act = (torch.is_autocast_enabled, torch.is_inference_mode_enabled, torch.get_num_threads)
    in_each_step(engine, lambda: seen.add(tuple(f() for f in act)))
    alone = engine.submit([1, 2], (), SHORT).result().tokens
    try:
        torch.set_num_threads(threads + 1)
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            assert engine.submit([1, 2], (), SHORT).result().tokens == alone
    finally:
        torch.set_num_threads(threads)
    assert seen == {(False, True, threads), (False, True, threads + 1)}


class Said:
    """What a waiter sees of a handle."""

    def __init__(self, ready: bool = False, begins: bool = False, finished: bool = False) -> None:
        self.ready, self.begins, self.finished = ready or begins or finished, begins, finished


def test_a_stream_is_handed_over_in_pieces_that_are_worth_it() -> None:
    def due(patience: float, *handles: Said, after: float = 0.0, busy: bool = False) -> bool:
        waiter = _Waiter(handles, patience, int)  # type: ignore[arg-type]
        waiter.since = 0.0  # a clock's own time rounds what is added to it
        return waiter.due(after, busy)

    assert not due(0.0, Said(), busy=True)
    assert due(0.0, Said(), Said(ready=True))
    assert not due(STREAM, Said(ready=True))
    assert due(STREAM, Said(ready=True), after=STREAM)
    assert due(STREAM, Said(ready=True), busy=True)
    assert due(STREAM, Said(ready=True), Said(begins=True))
    assert due(STREAM, Said(ready=True), Said(finished=True))
    assert not due(WHOLE, Said(begins=True), busy=True, after=1e9)
    assert due(WHOLE, Said(), Said(finished=True))


def run(code: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],  # of forks beside threads
        cwd=root, capture_output=True, text=True, timeout=4 * PATIENCE,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_answers_too() -> None:
    """Forked in the middle of a step, with requests of all kinds under way."""
    run("""
import os, threading, time
from afnext.engine import Engine, GenerationParams
from tests.engine.models import small_model
engine, within, go = Engine(small_model(), []), threading.Event(), threading.Event()
params = GenerationParams(max_tokens=12)
alone = engine.submit([1, 2], (), params).result().tokens
step = engine.runner.step
def slow(*arguments):
    within.set()
    go.wait()
    return step(*arguments)
engine.runner.step = slow
handles = [engine.submit([1, 2], (), params), engine.submit([3], (), params, iter([([4], [])] * 3))]
threads = [threading.Thread(target=h.result) for h in handles]
for thread in threads:
    thread.start()
within.wait()
child = os.fork()
go.set()
if child == 0:
    right = engine.submit([1, 2], (), params).result().tokens == alone
    for handle in handles:
        try:
            handle.result()
            right = False
        except RuntimeError as error:
            right &= "forked" in str(error)
    stats = engine.stats()
    os._exit(0 if right and stats.free_pages == stats.pages else 1)
deadline = time.monotonic() + 60
while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
    time.sleep(0.01)
if ended[0] == 0:
    os.kill(child, 9)
for thread in threads:
    thread.join()
assert ended == (child, 0), ended
assert handles[0].record.tokens == alone
print("done", flush=True)
""")


@pytest.mark.slow
def test_a_program_that_ends_waits_for_no_more_than_a_step() -> None:
    run("""
import atexit, threading
def late():
    try:
        engine.submit([1, 2]).result()
    except RuntimeError as error:
        assert "program ends" in str(error)
        print("done", flush=True)
atexit.register(late)
from afnext.engine import Engine, GenerationParams
from tests.engine.models import small_model
engine = Engine(small_model(text={"max_position_embeddings": 1 << 20}), [])
handle = engine.submit([1, 2], (), GenerationParams(max_tokens=1 << 19))
threading.Thread(target=handle.result, daemon=True).start()
while len(handle.record.tokens) < 9:
    pass
""")
