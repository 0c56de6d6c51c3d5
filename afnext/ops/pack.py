"""Weights of linear layers, packed once into the order in which the CPU kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from .quantize import QuantizedWeight, quantize
from .reference_quantized import FORMATS

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
        activations: how a product with int8 or int4 weights rounds x, a scale for each 128 elements of a
            row: "int16" (error 3e-5, far below bfloat16's own), "int8" (0.7 % of Gaussian numbers, twice
            as fast with many rows) or "auto" ("int8" in calls of 16 rows and more whose x it is expected
            to change by 1 % at most, else "int16"). None for dense weights.
        layout: names the order of the bytes; a saved packing of another layout is of no use.
    """

    data: Tensor
    format: str
    n: int
    k: int
    gate_up: bool = False
    activations: str | None = None
    layout: str = LAYOUT

    @classmethod
    def from_bytes(
        cls,
        data: Tensor,
        format: str,
        n: int,
        k: int,
        gate_up: bool = False,
        activations: str | None = None,
    ) -> PackedWeight:
        """A packing from a copy of its bytes, wherever they lie.

        Raises:
            ValueError: where they are not as many as the format and shape take.
        """
        kept = torch.empty(compiled.packed_bytes(format, n, k, gate_up), dtype=torch.uint8)
        compiled.expect_huge_pages(kept)
        check.typed("PackedWeight", "data", data, torch.uint8, tuple(kept.shape))
        return cls(kept.copy_(data), format, n, k, gate_up, activations)

    @property
    def nbytes(self) -> int:
        """Bytes that a product with this weight reads."""
        return self.data.numel()

    @property
    def kernel(self) -> str:
        """The format by the name that kernels know, ``activations`` included."""
        return (
            self.format
            if self.activations in (None, "int16")
            else f"{self.format}:{self.activations}"
        )

    @property
    def columns(self) -> int:
        """Columns of the product: ``n``, or F of a ``gate_up`` weight."""
        return self.n // 2 if self.gate_up else self.n

    def unpack(self) -> Tensor:
        """The plain weight ``[n, k]`` again; exact for dense formats, float32 for others."""
        if self.data.device.type != "cpu":
            return reference.unpack(self.data, self.format, self.n, self.k, self.gate_up)
        out = torch.empty(self.n, self.k, dtype=DTYPES.get(self.format, torch.float32))
        compiled.unpack(self.data, self.format, self.n, self.k, self.gate_up, out)
        return out


def pack(
    weight: Tensor | np.ndarray | QuantizedWeight,
    format: str | None = None,
    gate_up: bool = False,
    *,
    activations: str | None = None,
) -> PackedWeight:
    """Pack a weight for ``ops.linear``. Takes no memory beside the result.

    Args:
        weight: float32 or bfloat16 ``[N, K]`` on the CPU, unit stride in K; or an ``ops.quantize``d one.
        format: "float32" or "bfloat16" (the default; float32 values are rounded to it); or one of
            ``ops.quantize``, which then comes first, without zero points.
        gate_up: the weight is ``[2 * F, K]``, F gate rows and F up rows: for ``activation="silu_mul"``.
        activations: "int16", "int8" or "auto", see ``PackedWeight``. By default "int16" for int8 weights,
            whose own error is as small as that of "int8", and "int8" for int4 weights, whose error hides it.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    check.require(
        format is None or isinstance(format, str), f"pack: format must be a name, got {format!r}"
    )
    if isinstance(weight, np.ndarray):
        weight = torch.from_numpy(weight if weight.flags.writeable else weight.copy())
    if isinstance(weight, QuantizedWeight):
        check.require(
            format is None or format == weight.format,
            f"pack: format must be {weight.format}, that of the quantised weight, got {format!r}",
        )
        return _pack_quantized(weight, gate_up, activations)
    check.require(
        isinstance(weight, Tensor),
        "pack: weight must be a torch tensor, NumPy array or QuantizedWeight",
    )
    if format in FORMATS:
        return _pack_quantized(quantize(weight, format), gate_up, activations)
    check.require(activations is None, "pack: activations are for int8 and int4 weights")
    check.floating("pack", "weight", weight, 2)
    n, k = weight.shape
    format = format or "bfloat16"
    data = torch.empty(compiled.packed_bytes(format, n, k, gate_up), dtype=torch.uint8)
    compiled.pack(weight.detach(), format, gate_up, data)
    return PackedWeight(data, format, n, k, gate_up)


def _pack_quantized(
    weight: QuantizedWeight, gate_up: bool, activations: str | None
) -> PackedWeight:
    bits, _ = FORMATS[weight.format]
    activations = activations or ("int16" if bits == 8 else "int8")
    check.require(
        activations in ("int16", "int8", "auto"),
        f"pack: activations must be int16, int8 or auto, got {activations!r}",
    )
    format = weight.format if weight.zeros is None else weight.format + "-zp"
    n, k = weight.shape
    data = torch.empty(compiled.packed_bytes(format, n, k, gate_up), dtype=torch.uint8)
    compiled.pack_quantized(weight.values, weight.scales, weight.zeros, format, n, k, gate_up, data)
    return PackedWeight(data, format, n, k, gate_up, activations)
