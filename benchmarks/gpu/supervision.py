"""Work in child processes: a kernel that hangs or breaks its process's context costs its own item alone.

Run as a program, this module is the child: it reads a job from its standard input, does one item after
another and prints each answer.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..results import Failure
from .build import GIVEN, ROOT, load_module

STARTUP = 120.0  # seconds until a child is ready: it imports torch, under a sanitizer too
ANSWER = "answer: "
END = "the end"  # the item that stands for a wrapper's own verdict, its exit code
LAST_WORDS = 600  # characters of what a child printed before it died


@dataclass(frozen=True)
class Job:
    """What a child does.

    Attributes:
        work: ``"module:function"``; the function takes ``settings`` and gives one that takes an item's name
            and returns what JSON holds.
        items: names, done in this order.
        seconds: an item may take.
        settings: for ``work``.
        environment: variables beside those of this process.
        wrapper: a program that runs the child, with its arguments.
    """

    work: str
    items: Sequence[str]
    seconds: float = 60.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    wrapper: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """An item's ``value``, or the ``error`` in words. After a ``fatal`` one the child is at its end."""

    value: Any = None
    error: str = ""
    fatal: bool = False


def run(job: Job, deadline: float = float("inf")) -> Iterator[tuple[str, Answer]]:
    """Each item with its answer, as it comes; not those left at the deadline (of ``time.monotonic``)."""
    left = list(job.items)
    while left and time.monotonic() < deadline:
        with _Child(job, left) as child:
            if (ready := child.answer(STARTUP)).error:
                yield from ((item, ready) for item in left)
                return
            while left and time.monotonic() < deadline:
                answer = child.answer(job.seconds)
                yield left.pop(0), answer
                if answer.fatal:
                    break
            else:
                if job.wrapper and not left:
                    yield END, child.end(job.seconds)


class _Child:
    """A process at work, killed at the end of the block if it still is."""

    def __init__(self, job: Job, items: Sequence[str]) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        self._process = subprocess.Popen(
            [*job.wrapper, sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            cwd=ROOT,
            env={**os.environ, **job.environment, "PYTHONUNBUFFERED": "1"},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._process.stdin is not None
        description = {"work": job.work, "items": list(items), "settings": dict(job.settings)}
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            json.dump(description, pipe)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._words.close()

    def answer(self, seconds: float) -> Answer:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return Answer(error=f"not done after {seconds:.0f} s", fatal=True)
        if line is None:
            code = self._process.wait()
            return Answer(error=f"the process ended with {code}: {self._last_words()}", fatal=True)
        return Answer(**json.loads(line))

    def end(self, seconds: float) -> Answer:
        """What the exit code says, once all items are done."""
        answer = self.answer(seconds)
        done = self._process.poll() == 0
        return Answer() if done else answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        other = []
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                self._lines.put(line.removeprefix(ANSWER))
            else:
                other.append(line)  # of a sanitizer
        with contextlib.suppress(ValueError):
            self._words.write("".join(other).encode())
        self._lines.put(None)

    def _last_words(self) -> str:
        self._words.seek(0)
        return " ".join(self._words.read().decode(errors="replace").split())[-LAST_WORDS:]


def _do_job() -> None:
    job = json.load(sys.stdin)
    if os.environ.get(GIVEN):
        load_module(cuda=False)
    module, _, name = job["work"].partition(":")
    work: Callable[[str], Any] = getattr(importlib.import_module(module), name)(job["settings"])
    _print({})
    for item in job["items"]:
        try:
            _print({"value": work(item)})
        except Exception as error:
            fatal = _context_is_lost()
            _print({"error": Failure.of("", "", error).error, "fatal": fatal})
            if fatal:
                return


def _print(answer: Mapping[str, Any]) -> None:
    print(ANSWER + json.dumps(answer), flush=True)


def _context_is_lost() -> bool:
    """Whether an error on the device has made every later call fail."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    _do_job()
