"""What is measured, as data: a row names the ops that it needs, a function that makes its case, and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..case import Case
from .lab import Lab

Make = Callable[..., Case]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        op: what it belongs to.
        make: called with the lab and the sizes when its turn comes; gives the case.
        sizes: its keywords on a GPU.
        tiny: those that a rehearsal takes instead.
        needs: torch ops that must have CUDA kernels, ``op`` unless given.
        older: measured with the kernels of GPUs before Hopper.
    """

    op: str
    make: Make
    sizes: Mapping[str, Any]
    tiny: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    older: bool = False

    @property
    def title(self) -> str:
        """Its op, sizes and kernels: a row's own."""
        return f"{self.op} {self.name}{' (sm_80)' * self.older}"

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.sizes.items())

    @property
    def ops(self) -> tuple[str, ...]:
        return self.needs or (self.op,)

    def case(self, lab: Lab) -> Case:
        return self.make(lab, **{**self.sizes, **(self.tiny if lab.rehearse else {})})


def agree(ours: Callable[[], Any], peer: Callable[[], Any], bound: float) -> Callable[[], None]:
    """A check: the first result of both, on the same inputs, within ``bound`` of one another in norm."""

    def check() -> None:
        a, b = _first(ours()).double(), _first(peer()).double()
        error = float((a - b.reshape(a.shape)).norm() / b.norm())
        assert error <= bound, f"differs from its peer by {error:.2g}, more than {bound:.2g}"

    return check


def _first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]
