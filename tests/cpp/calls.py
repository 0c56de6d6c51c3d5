"""What a reference case is made of: one call of an op, its inputs, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
# Rounding of the result, and as much again of what went before it: sums in float32 of some hundred
# products of size 1, and for bfloat16 the rounding of its 8 bits.
TOLERANCE = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (8e-3, 8e-3)}


@dataclass
class Output:
    """What an op writes: ``dtype``, the float64 values, and what was there before if that matters."""

    expected: Tensor
    dtype: torch.dtype
    before: Tensor | None = None
    tolerance: tuple[float, float] | None = None


@dataclass
class Call:
    """One call of an op. ``throws`` is a word of the error that it must end in."""

    name: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Output]
    numbers: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    throws: str = ""

    def misused(self, throws: str, **changed: Tensor | float | None) -> Call:
        """The same call with other arguments (None leaves one out), which must name ``throws``."""
        inputs, outputs, numbers = dict(self.inputs), dict(self.outputs), dict(self.numbers)
        for name, value in changed.items():
            if name in numbers:
                numbers[name] = value  # type: ignore[assignment]
            elif name in outputs:
                assert isinstance(value, Tensor)
                outputs[name] = Output(value, value.dtype)
            elif value is None:
                del inputs[name]
            else:
                assert isinstance(value, Tensor)
                inputs[name] = value
        return replace(
            self, name=f"{self.name}, wrong {' '.join(changed)}", throws=throws,
            inputs=inputs, outputs=outputs, numbers=numbers,
        )  # fmt: skip


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype)


def label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
