"""What the steps of a stage come to, added up from one report to the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ANSWER = "answer_loss"
OF_ANSWERS = ("answers", "loss/", "tokens/")
"""How counts begin whose sums losses are means over."""


class SourceLosses:
    """Losses of answers' tokens, summed for each source; nothing waits for the device until they are taken.

    Args:
        names: of the sources, the same on all processes.
        device: where losses are.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self._sums = torch.zeros(2, len(names), device=device)

    def add(self, losses: Tensor, owners: Tensor) -> None:
        """``losses``: float32 ``[N]``, one a token; ``owners``: int64 ``[N]``, which source it is of."""
        values = torch.stack(
            (losses.detach().float(), torch.ones_like(losses, dtype=torch.float32))
        )
        self._sums.index_add_(1, owners, values)

    def take(self) -> dict[str, float]:
        """What was added since the last call: ``loss/NAME`` and ``tokens/NAME``, sums both."""
        losses, tokens = self._sums.tolist()
        self._sums.zero_()
        found = {f"loss/{name}": value for name, value in zip(self.names, losses, strict=True)}
        return found | {f"tokens/{n}": value for n, value in zip(self.names, tokens, strict=True)}


class Meters:
    """Sums over steps.

    Args:
        peak: operations a second that all processes together could do.
    """

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self._clear()

    def _clear(self) -> None:
        self._losses: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        self._steps = self._skipped = 0

    def add(self, losses: Mapping[str, float], counts: Mapping[str, float], usable: bool) -> None:
        """A step's ``losses`` and norm of gradients, and its other ``counts``: ``seconds``, ``tokens``,
        seconds of ``audio``, ``flops``, of the seconds those waited for data (``wait``) and for messages
        (``messages``), what its learnt tokens weigh (``answers``), and what :class:`SourceLosses` gives.

        Losses count where the step was ``usable``. That of answers is a mean over the step's learnt tokens:
        a step that lost some of its samples, or all of them, counts for as much as is left.
        """
        self._steps += 1
        self._skipped += not usable
        for name, value in losses.items() if usable else ():
            self._losses[name] += value * (counts["answers"] if name == ANSWER else 1)
        for name, value in counts.items():
            if usable or not name.startswith(OF_ANSWERS):
                self._counts[name] += value

    def report(self, rate: float) -> dict[str, float]:
        """What was added since the last call, for the log; ``rate``: of learning, the highest of any part."""
        used, counts = self._steps - self._skipped, self._counts
        seconds = counts["seconds"]
        found = {
            name: value / (counts["answers"] if name == ANSWER else used)
            for name, value in self._losses.items()
            if name != ANSWER or counts["answers"]
        }
        for name in sorted(n.removeprefix("tokens/") for n in counts if n.startswith("tokens/")):
            if counts[f"tokens/{name}"]:
                found[f"loss/{name}"] = counts[f"loss/{name}"] / counts[f"tokens/{name}"]
        found |= {
            "learning_rate": rate,
            "tokens_per_second": counts["tokens"] / seconds,
            "audio_seconds_per_second": counts["audio"] / seconds,
            "peak_share": counts["flops"] / seconds / self.peak,
            "data_wait": counts["wait"] / seconds,
            "skipped": self._skipped,
        }
        if "messages" in counts:
            found["message_wait"] = counts["messages"] / seconds
        self._clear()
        return found
