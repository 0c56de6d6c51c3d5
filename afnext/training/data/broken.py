"""Samples that cannot be read: left out, counted and listed, up to a limit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from afnext.errors import AfnextError
from afnext.training.data.conversations import too_many
from afnext.training.run.records import end_line

LISTED = "broken.jsonl"


@dataclass(frozen=True, slots=True)
class Sample:
    """One that cannot be read: of which source, ``key`` (its record's file and its place there), and ``why``,
    with the name of the file at fault.
    """

    source: str
    key: str
    why: str


class Broken:
    """Those of a run, each once, however often it was drawn.

    Args:
        folder: of the run; ``broken.jsonl`` there lists them. What is listed already counts too: a run that
            begins anew has removed the list.
        limits: how many samples of each source may be broken.
        writes: whether this process adds to the list.
    """

    def __init__(self, folder: Path, limits: Mapping[str, int], writes: bool = True) -> None:
        self.path, self.limits, self.writes = folder / LISTED, limits, writes
        self.samples: dict[tuple[str, str], Sample] = {}
        self.counts: Counter[str] = Counter()
        if writes:
            end_line(self.path)
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with suppress(
                    ValueError
                ):  # a line that was cut short; the sample will be met again
                    self._note(Sample(**json.loads(line)))

    def add(self, samples: Iterable[Sample]) -> list[Sample]:
        """Count and list them; gives those that are new.

        Raises:
            AfnextError: more of a source are broken than its limit allows; they are listed.
        """
        new = [sample for sample in samples if self._note(sample)]
        if new and self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(s), ensure_ascii=False) + "\n" for s in new)
        for sample in reversed(new):
            count, limit = self.counts[sample.source], self.limits.get(sample.source, 0)
            if count > limit:
                raise AfnextError(
                    f"{sample.source}: {too_many(count, limit)} ({self.path} lists them); "
                    f"the last one: {sample.key}: {sample.why}"
                )
        return new

    def _note(self, sample: Sample) -> bool:
        at = sample.source, sample.key
        if at in self.samples:
            return False
        self.samples[at] = sample
        self.counts[sample.source] += 1
        return True
