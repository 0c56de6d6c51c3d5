"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass

from afnext.errors import AfnextError

BROKEN = 10
"""Steps in a row that cannot be used, and are left out, that end a run."""
MEMORY = 0.98  # of the mean length of gradients, a step


@dataclass
class Progress:
    """The stage, the next step in it, and the seconds spent so far.

    ``broken``: steps in a row that were left out; ``norm``: the mean length of the gradients of late.
    """

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    broken: int = 0
    norm: float = 0.0

    def usable(self, norm: float, finite: bool, spike: float, where: str) -> bool:
        """Whether a step's gradients, so long, are to be used: they are finite, and where ``spike`` is above
        0 not more than that many times as long as of late.

        Raises:
            AfnextError: too many in a row were not.
        """
        usable = finite and not (spike and self.norm and norm > spike * self.norm)
        if usable:
            self.norm = MEMORY * self.norm + (1 - MEMORY) * norm if self.norm else norm
        self.broken = 0 if usable else self.broken + 1
        if self.broken >= BROKEN:
            what = "far longer than before" if finite else "not finite"
            raise AfnextError(
                f"{where}: the gradients of {BROKEN} steps in a row were {what}, the last one "
                f"step {self.step}; the checkpoint is of before: try a smaller learning rate"
            )
        return usable
