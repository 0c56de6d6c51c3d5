"""Where a run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from afnext.errors import AfnextError

BROKEN = 10
"""Steps in a row that cannot be used, and are left out, that end a run."""
FORMAT = 2
"""Of what is saved of it. 1 drew with replacement, and kept no cursors."""
MEMORY = 0.98  # of the mean length of gradients, a step


@dataclass(frozen=True)
class Cursors:
    """Where the walk through a stage's sources stands, see :mod:`afnext.training.data.mixture`.

    Attributes:
        drawn: of each source, how many of its entries were taken, over all epochs.
        sizes: how many entries it has.
        waiting: those that were taken and are in no batch yet, in their order: the source's name, and which
            of its entries, counted from the first that was taken.
    """

    drawn: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[tuple[str, int], ...] = ()


@dataclass
class Progress:
    """The stage, the next step in it, and the seconds spent so far.

    ``broken``: steps in a row that were left out; ``norm``: the mean length of the gradients of late;
    ``cursors``: of what the next step draws.
    """

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    broken: int = 0
    norm: float = 0.0
    cursors: Cursors = field(default_factory=Cursors)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Progress:
        """What :meth:`to_dict` gave.

        Raises:
            AfnextError: it is of another format.
            ValueError, TypeError, KeyError: it is broken.
        """
        if (found := values.pop("format", 1)) != FORMAT:
            raise AfnextError(
                f"it is of format {found}, this version writes and reads format {FORMAT}: it says "
                "otherwise, or not, what of the sources was drawn; begin anew, or go on with the "
                "version that wrote it"
            )
        cursors = values.pop("cursors")
        waiting = tuple((str(name), int(number)) for name, number in cursors.pop("waiting"))
        return Progress(**values, cursors=Cursors(**cursors, waiting=waiting))

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
