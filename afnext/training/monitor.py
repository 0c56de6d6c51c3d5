"""What is watched while training: teacher-forced accuracy of each kind of question, and the log.

Total loss hides a kind of question that stays at chance (yes/no answers are two tokens in a hundred),
so every kind is scored apart: the share of answers whose every token is the model's first choice, given
the true tokens before it. Times count when they are within 0.1 s.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from afnext.model import AudioLanguageModel
from afnext.training import forward
from afnext.training.data import Batch, Vocabulary, assemble
from afnext.training.synthesis import ClipSet

CLIPS_PER_LENGTH = 16


def held_out_batches(sets: Sequence[ClipSet], vocab: Vocabulary) -> list[Batch]:
    """A fixed batch of every length up to 30 s."""
    rng = random.Random(0)
    return [
        assemble(s, range(min(CLIPS_PER_LENGTH, len(s))), 8, vocab, rng)
        for s in sets
        if s.seconds <= 30
    ]


@torch.no_grad()
def task_accuracy(
    net: AudioLanguageModel, batches: Sequence[Batch], vocab: Vocabulary
) -> dict[str, float]:
    """Share of right answers for every task; ``time_error`` is the mean error of times in seconds."""
    right: dict[str, list[bool]] = defaultdict(list)
    errors: list[float] = []
    first, last = int(vocab.times[0]), int(vocab.times[-1])
    for batch in batches:
        logits = forward.answer_logits(net, forward.adapt(net, forward.encode(net, batch)), batch)
        mask = batch.text.targets >= 0
        rows = mask.nonzero()[:, 0].tolist()
        segments = batch.text.segments[mask].tolist()
        truth, guess = batch.text.targets[mask].tolist(), logits.argmax(-1).tolist()
        answers: dict[tuple[int, int], bool] = {}
        for row, segment, t, g in zip(rows, segments, truth, guess, strict=True):
            good = t == g
            if first <= t <= last:
                distance = abs(t - g) if first <= g <= last else 100
                errors.append(min(distance, 100) / 10)
                good = distance <= 1
            key = (row, segment)
            answers[key] = answers.get(key, True) and good
        for (row, segment), good in answers.items():
            right[batch.text.tasks[row][segment - 1]].append(good)
    scores = {task: sum(v) / len(v) for task, v in sorted(right.items())}
    return scores | {"time_error": sum(errors) / max(1, len(errors))}


class Journal:
    """Records as JSON lines in a file; a progress bar on a terminal, plain lines in a pipe."""

    def __init__(self, path: Path, every: float = 20.0) -> None:
        self.path, self.every = path, every
        self._last = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=None)

    def advance(self, name: str, done: int, total: int) -> None:
        if self._bar:
            self._bar.update(self._task, description=name, completed=done, total=total)

    def due(self) -> bool:
        """Whether it is time for another line."""
        if time.monotonic() - self._last < self.every:
            return False
        self._last = time.monotonic()
        return True

    def write(self, kind: str, **values: Any) -> None:
        record = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **record}) + "\n")
        line = " ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()
        )
        if self._bar:
            self._bar.console.print(f"{kind}: {line}", highlight=False)
        else:
            print(f"{kind}: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
