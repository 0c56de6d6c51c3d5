"""How a folder of recordings comes along: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from .estimate import Estimate

EVERY = 60.0  # seconds between two lines


@contextmanager
def progress(folder: Path, files: Sequence[str], before: int) -> Iterator[Estimate]:
    """Show on stderr what the yielded estimate is told, with the time left.

    Args:
        folder: where the recordings are; their headers are read in the background.
        files: to be done, relative to ``folder``.
        before: how many recordings were done already.
    """
    estimate = Estimate(files)
    stop = Event()
    reader = Thread(target=_read_headers, args=(folder, files, estimate, stop), daemon=True)
    reader.start()
    shown = _bar if sys.stderr.isatty() else _lines
    try:
        with shown(estimate, before):
            yield estimate
    finally:
        stop.set()
        reader.join()


@contextmanager
def _bar(estimate: Estimate, before: int) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(describe(estimate, before))

    class Share(BarColumn):
        def render(self, task: Task):  # type: ignore[no-untyped-def]
            audio = estimate.audio() or (0.0, 1.0)
            task.total, task.completed = max(sum(audio), 1e-9), audio[0]
            return super().render(task)

    with Progress(Share(), Left(), console=Console(stderr=True), transient=True) as bar:
        bar.add_task("", total=None)
        yield


@contextmanager
def _lines(estimate: Estimate, before: int) -> Iterator[None]:
    stop = Event()

    def tell() -> None:
        while not stop.wait(EVERY):
            print(f"afnext: {describe(estimate, before)}", file=sys.stderr, flush=True)

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        stop.set()
        teller.join()


def describe(estimate: Estimate, before: int) -> str:
    """Files, audio and time left in a few words."""
    words = [f"{before + estimate.finished} of {before + estimate.files} files"]
    audio, left = estimate.audio(), estimate.time_left()
    if audio is not None:
        words.append(f"{clock(audio[1])} of audio to hear")
    words.append("estimating" if left is None else f"{clock(left)} left")
    return ", ".join(words)


def clock(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _read_headers(folder: Path, files: Sequence[str], estimate: Estimate, stop: Event) -> None:
    from afnext.audio import probe

    for file in files:
        if stop.is_set():
            return
        try:
            estimate.learn(file, probe(folder / file).duration)
        except Exception:  # a broken file: the one who answers says what is wrong with it
            estimate.learn(file, 0.0)
