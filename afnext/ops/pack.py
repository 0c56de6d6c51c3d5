"""Weights of linear layers, packed once into the order in which the kernels of a device read them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import _check as check
from . import reference
from ._compiled import compiled
from ._library import from_numpy
from .quantize import QuantizedWeight, quantize
from .reference_quantized import FORMATS

ALIGNMENT = 64  # of a packing's first byte
LAYOUT = "panels32-v1"
CUDA_LAYOUT = "mma-v2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def layout_on(device: torch.device) -> str:
    """The layout of packed weights on ``device``, in this build."""
    return CUDA_LAYOUT if device.type == "cuda" and compiled.has_cuda else LAYOUT


def unpack(
    data: Tensor, format: str, n: int, k: int, gate_up: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """The plain weight of a packing, in its own dtype (float32 for quantised ones) or, on CUDA, ``dtype``."""
    if layout_on(data.device) == LAYOUT and data.device.type != "cpu":
        return reference.unpack(data, format, n, k, gate_up)
    own = DTYPES.get(format, torch.float32)
    out = torch.empty(n, k, dtype=dtype or own, device=data.device)
    compiled.unpack(data, format, n, k, gate_up, out)
    return out


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight ``[n, k]`` in a kernel's own order; ``csrc/include/afnext/pack.h`` describes it, and
    ``csrc/cuda/packed_layout.h`` that of CUDA devices.

    Attributes:
        data: uint8 ``[bytes]``, aligned to 64 bytes. On CUDA a product reads them while the kernel before it
            may still run: whoever writes them in place by a kernel (a copy of contiguous bytes waits by
            itself) lets it end, as by ``torch.cuda.synchronize``, before the next product.
        format: what the weight is stored as, by the name that ``pack`` was given.
        n, k: shape of the plain weight.
        gate_up: whether it is ``[2 * F, K]``, gate rows and then up rows, packed side by side.
        activations: how a product with int8 or int4 weights rounds x, with a scale for each 128 elements of
            a row: "int16" (error 3e-5, far below bfloat16's own), "int8" (0.7 % of Gaussian numbers, the
            fastest with many rows; for "int8" weights a scale for each 512, 0.8 %) or "auto" ("int8" in
            calls of 16 rows and more whose x it is expected to change by 1 % at most, else "int16"). None
            for dense weights, and on CUDA, where x is never rounded. With AMX, many rows of bfloat16 are not
            rounded either but for "int8", and there not with groups of 32.
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
        """A packing from its bytes: where they lie, or a copy where they are not aligned there.

        Raises:
            ValueError: where they are not as many as the format and shape take.
        """
        size = compiled.packed_bytes(format, n, k, gate_up, False)
        check.typed("PackedWeight", "data", data, torch.uint8, (size,))
        if data.data_ptr() % ALIGNMENT or not data.is_contiguous():
            kept = torch.empty(size, dtype=torch.uint8, device="cpu")  # whose layout it is
            compiled.expect_huge_pages(kept)
            data = kept.copy_(data)
        return cls(data, format, n, k, gate_up, activations)

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
        return unpack(self.data, self.format, self.n, self.k, self.gate_up)

    def to(self, device: torch.device | str) -> PackedWeight:
        """The weight on another device, in the layout of that device.

        Raises:
            ValueError: where that is another layout and the weight is quantised: its integers are to be
                packed there anew.
        """
        device = torch.device(device)
        layout = layout_on(device)
        if layout == self.layout:
            return replace(self, data=self.data.to(device))
        check.require(
            self.format in DTYPES,
            f"PackedWeight: {self.format} of layout {self.layout} has no other; pack the QuantizedWeight "
            f"on {device}",
        )
        return pack(self.unpack().to(device), self.format, self.gate_up)


def pack(
    weight: Tensor | np.ndarray | QuantizedWeight,
    format: str | None = None,
    gate_up: bool = False,
    *,
    activations: str | None = None,
) -> PackedWeight:
    """Pack a weight for ``ops.linear``, on the device where it lies. Takes no memory beside the result.

    Args:
        weight: float32 or bfloat16 (on CUDA also float16) ``[N, K]``, unit stride in K; or an
            ``ops.quantize``d one.
        format: "float32" (CPU), "float16" (CUDA) or "bfloat16" (the default; values are rounded to it); or
            one of ``ops.quantize`` ("fp8" on CUDA alone), which then comes first, without zero points.
        gate_up: the weight is ``[2 * F, K]``, F gate rows and F up rows: for ``activation="silu_mul"``.
        activations: "int16", "int8" or "auto", see ``PackedWeight``. By default "int16" for int8 weights,
            whose own error is as small as that of "int8", and "int8" for int4 weights, whose error hides it.
            Of no effect on CUDA.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    check.require(
        format is None or isinstance(format, str), f"pack: format must be a name, got {format!r}"
    )
    if isinstance(weight, np.ndarray):
        weight = from_numpy("pack", "weight", weight)
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
    data = _new(weight.device, format, n, k, gate_up)
    compiled.pack(weight.detach(), format, gate_up, data)
    return PackedWeight(data, format, n, k, gate_up, layout=layout_on(data.device))


def _new(device: torch.device, format: str, n: int, k: int, gate_up: bool) -> Tensor:
    size = compiled.packed_bytes(format, n, k, gate_up, device.type == "cuda")
    return torch.empty(size, dtype=torch.uint8, device=device)


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
    values = weight.values.view(torch.uint8) if format == "fp8" else weight.values
    data = _new(values.device, format, n, k, gate_up)
    compiled.pack_quantized(values, weight.scales, weight.zeros, format, n, k, gate_up, data)
    layout = layout_on(data.device)
    return PackedWeight(
        data, format, n, k, gate_up, None if layout == CUDA_LAYOUT else activations, layout
    )
