"""What is watched while training: teacher-forced accuracy of each kind of question, and the log.

Total loss hides a kind of question that stays at chance (yes/no answers are two tokens in a hundred),
so every kind is scored apart: the share of answers whose every token is the model's first choice, given
the true tokens before it. Times count when they are within 0.1 s.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from afnext.model import AudioLanguageModel
from afnext.training.data.batches import Batch
from afnext.training.data.packing import NOT_LEARNT, hear, hidden_states
from afnext.training.data.targets import Words
from afnext.training.run.records import end_line

if TYPE_CHECKING:
    from afnext.training.run.tensorboard import Board


@torch.no_grad()
def task_accuracy(
    net: AudioLanguageModel, batches: Sequence[Batch], words: Words
) -> dict[str, float]:
    """Share of right answers for every kind of question; ``time_error`` is the mean error of times in
    seconds, ``word_error`` the share of wrong tokens in transcripts.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    errors: list[float] = []
    spelled: list[bool] = []
    first, last = (int(words.times[0]), int(words.times[-1])) if len(words.times) else (1, 0)
    for batch in batches:
        packed = batch.packed
        hidden = hidden_states(net, packed, hear(net, packed.audio)[1])
        mask = packed.targets != NOT_LEARNT
        guesses = net.language_model.lm_head(hidden[mask]).argmax(-1).tolist()
        owners = packed.conversation[mask.cpu()].tolist()  # which stay on the host
        good: dict[int, bool] = {}
        for owner, truth, guess in zip(owners, packed.targets[mask].tolist(), guesses, strict=True):
            same = truth == guess
            if first <= truth <= last:
                distance = abs(truth - guess) if first <= guess <= last else 100
                errors.append(min(distance, 100) / 10)
                same = distance <= 1
            if packed.tasks[owner] == "transcribe":
                spelled.append(not same)
            good[owner] = good.get(owner, True) and same
        for owner, all_right in good.items():
            right[packed.tasks[owner].partition("+")[0]].append(all_right)
    scores = {task: sum(v) / len(v) for task, v in sorted(right.items())}
    return scores | {
        "time_error": sum(errors) / max(1, len(errors)),
        "word_error": sum(spelled) / max(1, len(spelled)),
    }


class Journal:
    """Records as JSON lines in a file, and on a ``board`` if there is one; a progress bar on a terminal,
    plain lines in a pipe.

    Args:
        path: of the file.
        every: seconds from one record of a stage to the next, at most.
        records: of a stage, at least, as far as it has steps.
    """

    board: Board | None = None

    def __init__(self, path: Path, every: float = 20.0, records: int = 20) -> None:
        self.path, self.every, self.records = path, every, records
        self._last = self._advanced = time.monotonic()
        self._unrecorded = 0  # steps
        self._bar: Progress | None = None
        end_line(path)
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=None)

    def show(self, name: str, done: int, total: int) -> None:
        """Move the bar; a pipe learns it from the records."""
        if self._bar:
            self._bar.update(self._task, description=name, completed=done, total=total)

    def advance(self, name: str, done: int, total: int) -> None:
        """As :meth:`show`, of work that has no records: a pipe is told now and then."""
        self.show(name, done, total)
        if not self._bar and time.monotonic() - self._advanced >= self.every:
            self._advanced = time.monotonic()
            self.say(f"{name}: {done} of {total}")

    def due(self, step: int, steps: int) -> bool:
        """Whether a stage that has taken ``step`` of its ``steps`` is to have another record, as it always is
        after the last; asked once a step.
        """
        self._unrecorded += 1
        late = time.monotonic() - self._last >= self.every
        if not late and self._unrecorded < steps // self.records and step < steps:
            return False
        self._last, self._unrecorded = time.monotonic(), 0
        return True

    def write(self, kind: str, place: str = "", /, **values: Any) -> None:
        """A record. ``place`` says on the console where the run stands, in place of its stage and step."""
        # Digits that say something, of rates of 1e-6 too.
        record = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **record}) + "\n")
        if self.board:
            self.board.add(kind, values)
        line = " ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in values.items()
            if not (place and k in ("stage", "step"))
        )
        self.say(f"{kind}: {place}: {line}" if place else f"{kind}: {line}")

    def say(self, text: str) -> None:
        """A line for whoever watches, not for the file."""
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.board:
            self.board.close()
        if self._bar:
            self._bar.stop()


class Quiet(Journal):
    """Writes and shows nothing: for processes beside the first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def show(self, name: str, done: int, total: int) -> None:
        pass

    def advance(self, name: str, done: int, total: int) -> None:
        pass

    def due(self, step: int, steps: int) -> bool:
        return False

    def write(self, kind: str, place: str = "", /, **values: Any) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass
