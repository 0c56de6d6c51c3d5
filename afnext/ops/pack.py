"""Weights of linear layers, packed once into the order in which the CPU kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled

LAYOUT = "panels32-v1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight ``[n, k]`` in a kernel's own order; ``csrc/include/afnext/pack.h`` describes it.

    Attributes:
        data: uint8 ``[bytes]``, aligned to 64 bytes.
        format: what the weight is stored as, by the name that ``pack`` was given.
        n, k: shape of the plain weight.
        gate_up: whether it is ``[2 * F, K]``, gate rows and then up rows, packed side by side.
        layout: names the order of the bytes; a saved packing of another layout is of no use.
    """

    data: Tensor
    format: str
    n: int
    k: int
    gate_up: bool = False
    layout: str = LAYOUT

    @property
    def nbytes(self) -> int:
        """Bytes that a product with this weight reads."""
        return self.data.numel()

    @property
    def columns(self) -> int:
        """Columns of the product: ``n``, or F of a ``gate_up`` weight."""
        return self.n // 2 if self.gate_up else self.n

    def unpack(self) -> Tensor:
        """The plain weight ``[n, k]`` again; exact for dense formats."""
        if self.data.device.type != "cpu":
            return reference.unpack(self.data, self.format, self.n, self.k, self.gate_up)
        out = torch.empty(self.n, self.k, dtype=DTYPES[self.format])
        compiled.unpack(self.data, self.format, self.n, self.k, self.gate_up, out)
        return out


def pack(
    weight: Tensor | np.ndarray, format: str = "bfloat16", gate_up: bool = False
) -> PackedWeight:
    """Pack a weight for ``ops.linear``. Takes no memory beside the result.

    Args:
        weight: float32 or bfloat16 ``[N, K]`` on the CPU, unit stride in K.
        format: "float32" or "bfloat16" (float32 values are rounded to it).
        gate_up: the weight is ``[2 * F, K]``, F gate rows and F up rows: for ``activation="silu_mul"``.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    if isinstance(weight, np.ndarray):
        weight = torch.from_numpy(weight if weight.flags.writeable else weight.copy())
    check.require(isinstance(weight, Tensor), "pack: weight must be a torch tensor or NumPy array")
    check.floating("pack", "weight", weight, 2)
    n, k = weight.shape
    data = torch.empty(compiled.packed_bytes(format, n, k, gate_up), dtype=torch.uint8)
    compiled.pack(weight.detach(), format, gate_up, data)
    return PackedWeight(data, format, n, k, gate_up)
