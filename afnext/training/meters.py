"""What the steps of a stage come to, added up from one report to the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping


class Meters:
    """Sums over steps. Losses are means over the steps that were used, everything else is by the second."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._losses: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        self._steps = self._skipped = 0

    def add(self, losses: Mapping[str, float], counts: Mapping[str, float], usable: bool) -> None:
        """A step's ``losses``, which count where it was ``usable``, and its other ``counts``: ``seconds``,
        ``tokens``, seconds of ``audio``, and of them waited for data (``wait``).
        """
        self._steps += 1
        self._skipped += not usable
        for name, value in losses.items() if usable else ():
            self._losses[name] += value
        for name, value in counts.items():
            self._counts[name] += value

    def report(self, rate: float) -> dict[str, float]:
        """What was added since the last call, for the log; ``rate``: of learning, now."""
        used, seconds = self._steps - self._skipped, self._counts["seconds"]
        found = {name: value / used for name, value in self._losses.items()} | {
            "rate": rate,
            "tokens_per_second": self._counts["tokens"] / seconds,
            "audio_seconds_per_second": self._counts["audio"] / seconds,
            "data_wait": self._counts["wait"] / seconds,
            "skipped": self._skipped,
        }
        self._clear()
        return found
