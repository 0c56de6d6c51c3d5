"""Many mixed requests from many threads over a small cache; every answer must be that of a request alone.

    python -m tests.engine.soak --requests 2000 [--device cuda]

Requests are greedy or sampled with a seed, guessed ahead or not, about recordings that come again, cut off by
stop strings, cancelled in the middle, forgotten, late, or about files that are broken. In the end no page may
be held, no request left, and memory must not have grown.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import afnext
from afnext.engine import Engine
from afnext.engine.pages import page_bytes

QUESTIONS = ("What sounds do you hear, and when?", "Describe this.", "How many sounds are there?")
LENGTHS = (0.7, 2.0, 4.3, 31.0)
PAGES = 34
THREADS = 16
GROWTH = 48 << 20  # allocators keep some of what they were given
BROKEN: tuple[Any, ...] = (b"no audio", "/nonexistent.wav", np.full(16_000, np.nan, np.float32))


@dataclass(frozen=True)
class Question:
    """One kind of request, with what it is answered when nobody else asks."""

    message: afnext.Message
    options: dict[str, Any]
    text: str
    stopped: str


def model(pages: int = PAGES, device: str = "cpu") -> afnext.Assistant:
    """nano over a cache of so many pages, in float32: in bfloat16 a batch may round otherwise.

    It does not end its answers by itself: about noise they would all be short.
    """
    assistant = afnext.load("nano", dtype="float32", device=device)
    size = pages * page_bytes(assistant.net.config.text, 32, torch.float32)
    assistant.engine = Engine(
        assistant.net, [], cache_bytes=size, audio_cache_bytes=1 << 20, max_step_tokens=256,
        max_running=12,
    )  # fmt: skip
    return assistant


def questions(assistant: afnext.Assistant, seed: int) -> list[Question]:
    """All kinds, each asked alone of an engine that has nothing cached."""
    noise = np.random.default_rng(seed)
    clips = [(noise.standard_normal(int(s * 16_000)) * 0.05).astype(np.float32) for s in LENGTHS]
    ways: list[dict[str, Any]] = [
        {},
        {"stop": True},
        {"speculate": 4},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.8, "seed": 4, "repetition_penalty": 1.1, "speculate": 3},
    ]
    found = []
    for number, clip in enumerate([[c] for c in clips] + [[clips[0], clips[1]], []]):
        for place, text in enumerate(QUESTIONS):
            options = {"max_tokens": 20 + 30 * number, **ways[(number + place) % len(ways)]}
            message = afnext.Message("user", text, clip)
            if options.pop("stop", False):
                whole = assistant.reply([message], **options).text
                options["stop"] = [whole[len(whole) // 2 :][:3]]
            assistant.engine.clear_caches()
            reply = assistant.reply([message], **options)
            found.append(Question(message, options, reply.text, reply.stopped))
    return found


class Soak:
    """Asks until ``count`` requests are done.

    Attributes:
        fates: how many ended how.
        wrong: answers that differ from those of a request alone.
    """

    def __init__(self, assistant: afnext.Assistant, asked: list[Question], seed: int) -> None:
        self.assistant, self.asked = assistant, asked
        self.fates: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        ways = [self.whole] * 6 + [self.asynchronous, self.cancelled, self.late, self.broken]
        self._ways: list[Callable[[Question, int], str]] = [*ways, self.forgotten]

    def one(self, _: int) -> None:
        with self._lock:
            way, question = self._random.choice(self._ways), self._random.choice(self.asked)
            number = self._random.randrange(1000)
        fate = way(question, number)
        with self._lock:
            self.fates[fate] += 1

    def check(self, question: Question, reply: afnext.Reply, fate: str) -> str:
        if (reply.text, reply.stopped) != (question.text, question.stopped):
            self.wrong.append(f"{question.message.text!r}, {question.options}: {reply.text!r}")
            return "wrong"
        return fate

    def whole(self, question: Question, number: int) -> str:
        reply = self.assistant.reply([question.message], **question.options)
        return self.check(question, reply, reply.stopped)

    def asynchronous(self, question: Question, number: int) -> str:
        async def read() -> afnext.Reply:
            stream = self.assistant.astream([question.message], **question.options)
            pieces = [piece async for piece in stream]
            assert pieces[-1].reply is not None
            return pieces[-1].reply

        return self.check(question, asyncio.run(read()), "asynchronous")

    def cancelled(self, question: Question, number: int) -> str:
        stream = self.assistant.stream([question.message], **question.options)
        said = ""
        for _ in range(number % 12):
            piece = next(stream, None)
            if piece is None or piece.reply is not None:
                break
            said += piece.text
        stream.close()
        if not question.text.startswith(said):
            self.wrong.append(f"{question.message.text!r}, {question.options}: {said!r} ...")
        return "cancelled"

    def forgotten(self, question: Question, number: int) -> str:
        next(self.assistant.stream([question.message], **question.options))
        return "forgotten"

    def late(self, question: Question, number: int) -> str:
        options = {**question.options, "timeout": 0.001 + number / 20_000}
        reply = self.assistant.reply([question.message], **options)
        if reply.stopped != "timeout":
            return self.check(question, reply, reply.stopped)
        if not question.text.startswith(reply.text):
            self.wrong.append(f"{question.message.text!r}, {options}: {reply.text!r} ...")
        return "timeout"

    def broken(self, question: Question, number: int) -> str:
        try:
            self.assistant.ask(BROKEN[number % len(BROKEN)], question.message.text)
        except afnext.AudioError:
            return "refused"
        self.wrong.append("a broken recording was answered")
        return "wrong"


def resident() -> int:
    """Bytes of memory that this process holds."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def soak(assistant: afnext.Assistant, requests: int, seed: int = 0, threads: int = THREADS) -> str:
    """Run, and say what happened; raises ``AssertionError`` where something went wrong."""
    asked = questions(assistant, seed)
    run = Soak(assistant, asked, seed)
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run.one, range(requests // 3), timeout=600))
        before = resident()
        list(pool.map(run.one, range(requests - requests // 3), timeout=3600))
    seconds, grown = time.perf_counter() - started, resident() - before
    while (stats := assistant.engine.stats()).running and time.perf_counter() < started + 3600:
        time.sleep(0.01)  # what was given up within a step is there until it ends
    told = (
        f"{requests} requests in {seconds:.1f} s: {dict(sorted(run.fates.items()))}; "
        f"{stats.steps} steps, {stats.tokens} tokens, {stats.preemptions} preemptions, "
        f"{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens cached, "
        f"{grown / 2**20:+.1f} MiB"
    )
    assert not run.wrong, (told, run.wrong[:5])
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.pages), told
    assert sum(run.fates.values()) == requests, told
    assert stats.preemptions > 0, told
    assert stats.evicted_pages > 0, told
    assert grown < GROWTH, told
    return told


def main() -> None:
    """Print what happened, or fail."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.soak")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(soak(model(device=arguments.device), arguments.requests, arguments.seed))


if __name__ == "__main__":
    main()
