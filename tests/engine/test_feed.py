"""Prompts whose end comes while their beginning is read: the same answers, and all that can go wrong."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from afnext.audio import AudioWindow
from afnext.engine import DiskCache, Engine, Generation, GenerationParams, Prompt
from afnext.engine.feed import MOST_READERS, Feed
from afnext.engine.pages import page_bytes
from afnext.engine.prompt_audio import PromptAudio
from afnext.engine.request import State
from afnext.model import AudioLanguageModel
from tests.engine.models import SOUND, recomputed, small_model, window

pytestmark = pytest.mark.slow

PATIENCE = 30.0  # seconds until a test says that something does not happen
TAIL = [7, 8, 9]
PARAMS = GenerationParams(max_tokens=6, logprobs=4)
Stretch = tuple[list[int], list[AudioWindow]]


@pytest.fixture(scope="module")
def net() -> AudioLanguageModel:
    return small_model(text={"max_position_embeddings": 4096})


def recording(seconds: float = 100.0, seed: int = 0) -> list[AudioWindow]:
    starts = range(0, int(seconds), 30)
    return [window(min(30.0, seconds - s), seed + n, start=s) for n, s in enumerate(starts)]


CLIP = recording()


def sounds(windows: Sequence[AudioWindow]) -> list[int]:
    return [SOUND] * sum(w.num_tokens for w in windows)


def whole(windows: Sequence[AudioWindow], tail: Sequence[int] = TAIL) -> list[int]:
    return [1, *sounds(windows), *tail]


def parts(
    windows: Sequence[AudioWindow], tail: Sequence[int] = TAIL, before: Callable[[], object] = int
) -> Iterator[Stretch]:
    """What comes behind the first window; ``before`` is called before each of it."""
    for one in windows[1:]:
        before()
        yield sounds([one]), [one]
    before()
    yield list(tail), []


def growing(
    windows: Sequence[AudioWindow] = CLIP,
    tail: Sequence[int] = TAIL,
    params: GenerationParams = PARAMS,
    before: Callable[[], object] = int,
) -> Prompt:
    more = parts(windows, tail, before)
    return Prompt(whole(windows[:1], ()), windows[:1], params, more, len(whole(windows, tail)))


def submit(engine: Engine, prompt: Prompt) -> Any:
    return engine.submit(prompt.ids, prompt.windows, prompt.params, prompt.more, prompt.expected)


def free(engine: Engine) -> bool:
    stats = engine.stats()
    return (stats.free_pages, stats.running, stats.waiting) == (stats.pages, 0, 0)


def happens(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def on_step(engine: Engine, act: Callable[[], object]) -> None:
    step = engine.runner.step

    def wrapped(*arguments: Any) -> torch.Tensor:
        act()
        return step(*arguments)

    engine.runner.step = wrapped  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def expected(net: AudioLanguageModel) -> Generation:
    """What is said where all of the prompt is there at once; the model alone says so too."""
    said = Engine(net, []).submit(whole(CLIP), CLIP, PARAMS).result()
    assert said.tokens == recomputed(net, whole(CLIP), CLIP, 6)
    return said


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"audio_cache_bytes": 0},
        {"max_step_tokens": 700},
        {"max_step_tokens": 5, "max_running": 5},
    ],
)
@pytest.mark.parametrize("hurry", [0.0, 0.05])
def test_the_answer_is_the_same_to_the_bit(
    net: AudioLanguageModel, limits: dict[str, int], hurry: float
) -> None:
    """However fast its parts come, a prompt is read in the same steps as one that is there at once."""
    if hurry and limits.get("max_step_tokens") == 5:
        pytest.skip("takes long, and tells nothing more")
    at_once = Engine(net, [], **limits).submit(whole(CLIP), CLIP, PARAMS).result()
    engine = Engine(net, [], **limits)
    said = submit(engine, growing(before=lambda: time.sleep(hurry))).result()
    assert (said.tokens, said.logprobs) == (at_once.tokens, at_once.logprobs)
    assert (said.prompt_tokens, said.audio_tokens) == (at_once.prompt_tokens, at_once.audio_tokens)
    assert said.timings.decode_audio >= 4 * hurry
    assert free(engine)


def test_it_is_read_while_its_end_is_not_known(
    net: AudioLanguageModel, expected: Generation
) -> None:
    engine, stepped = Engine(net, [], max_step_tokens=512), threading.Event()
    on_step(engine, stepped.set)
    said = submit(engine, growing(before=lambda: stepped.wait(PATIENCE) or pytest.fail("no step")))
    assert said.result().tokens == expected.tokens


def test_a_second_question_finds_all_of_it(net: AudioLanguageModel, tmp_path: Path) -> None:
    """In memory, and in another process's disk cache; asked before or after its end is known."""
    ids = whole(CLIP, [3, 4])
    answer = recomputed(net, ids, CLIP, 6)
    engine = Engine(net, [], disk_cache=DiskCache(tmp_path, "model"))
    submit(engine, growing()).result()
    found = (len(ids) - 1) // 32 * 32
    engine.flush()
    tomorrow = Engine(net, [], disk_cache=DiskCache(tmp_path, "model"))
    for asked in (engine, tomorrow):
        misses = asked.stats().audio_misses
        again = submit(asked, growing(CLIP, [3, 4])).result()
        # The last page holds the end of the first question.
        assert again.cached_tokens >= found - 32
        assert again.tokens == answer
        assert asked.stats().audio_misses == misses
    assert tomorrow.stats().restored_tokens >= found - 32


@pytest.mark.parametrize("together", ["questions", "samples"])
def test_questions_at_once_read_it_once(net: AudioLanguageModel, together: str) -> None:
    engine = Engine(net, [])
    if together == "samples":
        params = [GenerationParams(max_tokens=6, temperature=1.0, seed=5, n=3)]
    else:
        params = [GenerationParams(max_tokens=6, temperature=1.0, seed=s) for s in (5, 6, 7)]
    asked = [growing(params=p, before=lambda: time.sleep(0.02)) for p in params]
    said = [r.tokens for first in engine.generate(asked) for r in (first, *first.others)]
    alone = Engine(net, [])
    for seed, tokens in zip((5, 6, 7), said, strict=True):
        one = GenerationParams(max_tokens=6, temperature=1.0, seed=seed)
        assert tokens == alone.submit(whole(CLIP), CLIP, one).result().tokens
    stats = engine.stats()
    assert stats.audio_misses == len(CLIP)
    assert stats.prompt_tokens - stats.cached_tokens < len(whole(CLIP)) + 2 * 64
    assert free(engine)


def test_recordings_that_part_late_are_told_apart(net: AudioLanguageModel) -> None:
    """The second one waits while all that is known of it is being read, and goes its own way then."""
    other = [*CLIP[:2], *recording(seed=10)[2:]]
    engine = Engine(net, [])
    slow = {"before": lambda: time.sleep(0.02)}
    said = engine.generate([growing(CLIP, **slow), growing(other, **slow)])
    assert [r.tokens for r in said] == [recomputed(net, whole(w), w, 6) for w in (CLIP, other)]
    assert engine.stats().audio_misses == len(CLIP) + 2


def test_sampling_knows_the_whole_prompt(net: AudioLanguageModel) -> None:
    """The repetition penalty counts the end of it."""
    params = GenerationParams(max_tokens=12, repetition_penalty=5.0, speculate=3)
    tail = list(range(20, 50))
    at_once = Engine(net, []).submit(whole(CLIP, tail), CLIP, params).result()
    said = submit(Engine(net, []), growing(CLIP, tail, params)).result()
    assert said.tokens == at_once.tokens
    assert not set(said.tokens) & set(tail)


def test_a_draft_model_guesses_for_it(net: AudioLanguageModel, expected: Generation) -> None:
    engine = Engine(net, [], draft=net)
    said = submit(engine, growing(params=GenerationParams(max_tokens=6, speculate=2))).result()
    assert said.tokens == expected.tokens
    assert engine.stats().accepted_tokens > 0


def test_what_reading_fails_with_the_request_fails_with(net: AudioLanguageModel) -> None:
    def broken() -> Iterator[Stretch]:
        yield sounds(CLIP[1:2]), CLIP[1:2]
        raise OSError("the disk is gone")

    engine, two = Engine(net, []), GenerationParams(n=2, temperature=1.0)
    asked = [
        engine.submit(whole(CLIP[:1], ()), CLIP[:1], two, broken()),
        engine.submit([1, 2, 3], (), PARAMS),
    ]
    assert len(asked[1].result().tokens) == 6
    for handle in asked[0].samples:
        with pytest.raises(OSError, match="disk is gone"):
            handle.result()
    assert free(engine)
    assert len(submit(engine, growing()).result().tokens) == 6


@pytest.mark.parametrize(
    ("stretch", "said"),
    [
        (([SOUND] * 9, []), "9 <sound> placeholders"),
        (([64], []), "from 0 to 63"),
        (([5] * 4000, []), "takes 4096"),
    ],
)
def test_what_would_be_refused_at_once_is_refused_late(
    net: AudioLanguageModel, stretch: Stretch, said: str
) -> None:
    engine = Engine(net, [])
    handle = engine.submit(whole(CLIP[:1], ()), CLIP[:1], PARAMS, iter([stretch]))
    with pytest.raises(ValueError, match=said):
        handle.result()
    assert free(engine)


class Endless:
    """Gives tokens until it is closed."""

    def __init__(self) -> None:
        self.given, self.closed = 0, threading.Event()

    def __iter__(self) -> Endless:
        return self

    def __next__(self) -> Stretch:
        self.given += 1
        time.sleep(0.002)
        return [], []

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("how", ["cancelled", "forgotten", "late"])
def test_nobody_reads_what_nobody_wants(net: AudioLanguageModel, how: str) -> None:
    engine, more = Engine(net, []), Endless()
    params = GenerationParams(n=2, temperature=1.0)
    if how == "late":
        params = GenerationParams(timeout=0.2)
    handle = engine.submit(whole(CLIP[:1], ()), CLIP[:1], params, more)
    assert happens(lambda: more.given > 3)
    assert not more.closed.is_set()
    if how == "late":
        assert handle.result().stopped == "timeout"
    elif how == "cancelled":
        first, second = handle.samples
        first.cancel()
        assert not more.closed.wait(0.05)  # the other one wants it
        second.cancel()
    else:
        del handle
        gc.collect()
    assert more.closed.wait(PATIENCE)
    assert happens(lambda: free(engine))
    assert happens(lambda: engine.feeds.active == [])


def test_a_source_that_rests_is_closed_when_its_request_is_late(net: AudioLanguageModel) -> None:
    """Far enough ahead of the model, nobody reads it; nor does anybody else come by later."""
    engine, closed, stuck = (
        Engine(net, [], max_step_tokens=8, max_running=8),
        threading.Event(),
        threading.Event(),
    )

    def more() -> Iterator[Stretch]:
        try:
            while True:
                yield sounds(CLIP[:1]), CLIP[:1]
        finally:
            closed.set()

    on_step(engine, lambda: stuck.wait(0.3))
    late = engine.submit([1], (), GenerationParams(timeout=0.5), more())
    assert late.result().stopped == "timeout"
    assert closed.wait(PATIENCE)
    assert happens(lambda: engine.feeds.active == [])
    stuck.set()


@pytest.mark.parametrize("timeout", [None, 1e12])
@pytest.mark.parametrize("others", [0, 1])
def test_a_source_may_end_with_nothing_more(
    net: AudioLanguageModel, timeout: float | None, others: int
) -> None:
    """All that is known was to be computed by then: its last token still says what comes next."""
    ids, params = [1, 2, 3, 4, 5], GenerationParams(max_tokens=6, timeout=timeout)
    alone = Engine(net, []).submit(ids, (), params).result().tokens
    engine, end = Engine(net, [], max_step_tokens=5, max_running=5), threading.Event()

    def more() -> Iterator[Stretch]:
        assert end.wait(PATIENCE)
        yield from ()

    handle = engine.submit(ids, (), params, more())
    for _ in range(others):
        assert engine.submit([7, 8], (), PARAMS).result().tokens
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(handle.result)
        time.sleep(0.05)
        end.set()
        assert said.result(PATIENCE).tokens == alone
    assert free(engine)


def test_others_are_served_while_one_waits(net: AudioLanguageModel) -> None:
    """What waits for the rest of its prompt keeps nobody."""
    engine, go = Engine(net, []), threading.Event()
    handle = submit(engine, growing(before=lambda: go.wait(PATIENCE)))
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(handle.result)
        assert happens(lambda: engine._driver.idle)
        for _ in range(3):
            assert len(engine.submit([1, 2, 3], (), PARAMS).result().tokens) == 6
        assert not long.done()
        go.set()
        assert len(long.result(PATIENCE).tokens) == 6


def test_one_that_is_slow_does_not_hold_up_the_others(net: AudioLanguageModel) -> None:
    engine, go = Engine(net, []), threading.Event()
    slow = submit(engine, growing(before=lambda: go.wait(PATIENCE)))
    # The first of them begins as the slow one does, and goes on when that has read what it knows.
    short = [submit(engine, growing(recording(40.0, n))) for n in range(2 * MOST_READERS)]
    assert all(len(h.result().tokens) == 6 for h in short)
    assert not slow.finished
    assert engine.stats().cached_tokens >= CLIP[0].num_tokens // 32 * 32
    go.set()
    assert len(slow.result().tokens) == 6


def test_sources_that_stall_hold_up_nobody(net: AudioLanguageModel) -> None:
    """However many they are; each takes a thread of its own."""
    engine, go = Engine(net, []), threading.Event()
    engine.feeds._most = 2
    given_up: list[bool] = []

    def wait() -> None:
        if not go.wait(PATIENCE):
            given_up.append(True)

    slow = [submit(engine, growing(recording(40.0, 9 + n), before=wait)) for n in range(3)]
    asked = submit(engine, growing())
    assert len(asked.result().tokens) == 6
    assert not given_up
    assert not any(h.finished for h in slow)
    go.set()
    assert all(len(h.result().tokens) == 6 for h in slow)


def test_a_recording_is_not_read_far_ahead(net: AudioLanguageModel) -> None:
    """What waits for its turn holds little audio; cancelled there, its source is closed."""
    engine = Engine(net, [], max_running=1, max_step_tokens=512)
    given: list[list[int]] = [[], [], []]
    closed = [threading.Event() for _ in given]

    def counted(number: int) -> Iterator[Stretch]:
        try:
            for stretch in parts(recording(120.0, 5 + number)):
                given[number].append(len(stretch[0]))
                yield stretch
        finally:
            closed[number].set()

    def asked(number: int) -> Any:
        first = recording(120.0, 5 + number)[:1]
        return engine.submit(whole(first, ()), first, PARAMS, counted(number))

    def paused() -> bool:
        with engine.lock:
            return not engine.feeds._reading

    before = whole(recording(120.0)[:1], ())
    running, waiting, dropped = (asked(n) for n in range(3))
    assert happens(paused)
    for taken in given:  # the next one was begun where this was not enough
        assert len(before) + sum(taken[:-1]) < 2 * 512 <= len(before) + sum(taken)
    assert not any(c.is_set() for c in closed)
    assert len(running.result().tokens) == 6
    assert closed[0].wait(PATIENCE)
    dropped.cancel()
    assert closed[2].wait(PATIENCE)
    assert len(waiting.result().tokens) == 6
    assert closed[1].wait(PATIENCE)
    assert happens(lambda: free(engine))


@pytest.mark.parametrize(
    ("requests", "hungry"),
    [
        ([("waiting", 0, False)], False),
        ([("waiting", 0, True)], True),  # what it repeats is another's
        ([("running", 0, False)], False),
        ([("running", 51, False)], True),
        ([("running", 0, False), ("waiting", 0, True)], False),  # its own other sample's
        ([("done", 100, False), ("waiting", 0, False)], False),
    ],
)
def test_what_is_read_by_who_asks(requests: list[tuple[str, int, bool]], hungry: bool) -> None:
    feed = Feed(iter(()), [1] * 100, PromptAudio([1] * 100, [], SOUND))
    for state, computed, starving in requests:
        one: Any = SimpleNamespace(state=State(state), computed=computed, starving=starving)
        feed.requests.append(one)
    assert feed.hungry(50) == hungry
    assert feed.hungry(101)


@pytest.mark.parametrize("told", [True, False])
def test_more_than_there_are_pages_for(
    net: AudioLanguageModel, expected: Generation, told: bool
) -> None:
    """Two that do not fit at once, whether their lengths are known or not: one gives way."""
    pages = (len(whole(CLIP)) + 6) // 32 + 8
    size = page_bytes(net.config.text, 32, torch.float32)
    engine = Engine(net, [], cache_bytes=pages * size, max_step_tokens=256)
    other = recording(seed=20)
    handles = []
    for one in (CLIP, other):
        prompt = growing(one, before=lambda: time.sleep(0.01))
        length = prompt.expected if told else 0
        handles.append(engine.submit(prompt.ids, prompt.windows, PARAMS, prompt.more, length))
    said = [h.result().tokens for h in handles]
    assert said == [expected.tokens, recomputed(net, whole(other), other, 6)]
    assert (engine.stats().preemptions > 0) == (not told)
    assert free(engine)


def test_a_program_that_ends_does_not_wait_for_it() -> None:
    code = """
import itertools, time
from afnext.engine import Engine
from tests.engine.models import small_model
engine = Engine(small_model(), [])
handle = engine.submit([1, 2], (), None, (time.sleep(0.01) or ([], []) for _ in itertools.count()))
time.sleep(0.1)
print("done", flush=True)
"""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=PATIENCE * 4
    )
    assert (run.stdout, run.stderr, run.returncode) == ("done\n", "", 0)
