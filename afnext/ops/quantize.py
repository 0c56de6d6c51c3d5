"""Weights of linear layers as small integers with scales: how they are found and how they lie on disk.

The formats are described in ``csrc/include/afnext/quantize.h``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import _check as check
from . import reference_quantized as reference
from ._compiled import compiled
from ._library import call_detached, define, from_numpy
from .reference_quantized import FORMATS

VERSION = 1


def _spec(op: str, format: str, zero_points: bool) -> tuple[int, int]:
    """Bits of a value and elements of a group (0: the whole row)."""
    check.require(
        format in FORMATS,
        f"{op}: format must be int8, int8-g128, int4-g128 or int4-g32, got {format!r}",
    )
    bits, group = FORMATS[format]
    check.require(bits == 4 or not zero_points, f"{op}: zero_points are for int4 formats")
    return bits, group


def _value_dtype(format: str, bits: int) -> torch.dtype:
    if format == "fp8":
        return torch.float8_e4m3fn
    return torch.int8 if bits == 8 else torch.uint8


def _new(weight: Tensor, format: str, zero_points: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Empty values, scales and zeros (with no elements where there are no zero points)."""
    check.floating("quantize", "weight", weight, 2)
    bits, group = _spec("quantize", format, zero_points)
    n, k = weight.shape
    values = weight.new_empty(n, k if bits == 8 else (k + 1) // 2, dtype=_value_dtype(format, bits))
    if group == 0:
        return (
            values,
            weight.new_empty(n, dtype=torch.float32),
            values.new_empty(0, dtype=torch.uint8),
        )
    shape = (n, (k + group - 1) // group)
    zeros = values.new_empty(shape if zero_points else 0, dtype=torch.uint8)
    return values, weight.new_empty(shape, dtype=torch.bfloat16), zeros


def _cpu(weight: Tensor, format: str, zero_points: bool) -> tuple[Tensor, Tensor, Tensor]:
    values, scales, zeros = _new(weight, format, zero_points)
    if format == "fp8":
        return reference.quantize_fp8(weight)
    compiled.quantize(weight, format, values, scales, zeros if zero_points else None)
    return values, scales, zeros


def _reference(weight: Tensor, format: str, zero_points: bool) -> tuple[Tensor, Tensor, Tensor]:
    spec = _spec("quantize", format, zero_points)
    return (
        reference.quantize_fp8(weight)
        if format == "fp8"
        else reference.quantize(weight, *spec, zero_points)
    )


OP = define(
    "quantize(Tensor weight, str format, bool zero_points) -> (Tensor, Tensor, Tensor)",
    kernel=_cpu,
    reference=_reference,
    fake=_new,
)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight ``[N, K]`` as integers with scales.

    Attributes:
        values: int8 ``[N, K]``; for fp8 float8_e4m3fn ``[N, K]``, finite; for int4 uint8
            ``[N, ceil(K / 2)]``, the even element in the low nibble.
        scales: float32 ``[N]`` for "int8" and "fp8", else bfloat16 ``[N, groups]``.
        zeros: uint8 ``[N, groups]``, or None where int4 values are offset by 8.
        format: "int8", "int8-g128", "int4-g128", "int4-g32" or "fp8".
        shape: ``(N, K)``.

    Raises:
        ValueError: where the tensors are not those of the format and shape.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    format: str
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        op = "QuantizedWeight"
        bits, group = _spec(op, self.format, self.zeros is not None)
        n, k = self.shape
        groups = (n, -(-k // group)) if group else (n,)
        check.typed(
            op,
            "values",
            self.values,
            _value_dtype(self.format, bits),
            (n, k if bits == 8 else (k + 1) // 2),
        )
        check.typed(op, "scales", self.scales, torch.bfloat16 if group else torch.float32, groups)
        if self.zeros is not None:
            check.typed(op, "zeros", self.zeros, torch.uint8, groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        tensors = (self.values, self.scales, self.zeros)
        return sum(t.nbytes for t in tensors if t is not None)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return replace(
            self, values=self.values.to(device), scales=self.scales.to(device), zeros=zeros
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``[N, K]`` that the integers stand for, computed in at least float32."""
        bits, group = FORMATS[self.format]
        _, k = self.shape
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if bits == 8:
            q = self.values.to(wide)
        else:
            q = torch.stack([self.values & 15, self.values >> 4], -1).flatten(1)[:, :k].to(wide)
        if not group:
            return (q * self.scales.to(wide)[:, None]).to(dtype)
        scales = self.scales.to(wide).repeat_interleave(group, 1)[:, :k]
        if bits == 4:
            q -= 8 if self.zeros is None else self.zeros.to(wide).repeat_interleave(group, 1)[:, :k]
        return (q * scales).to(dtype)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """What to save, in safetensors or any other file of named tensors.

        ``{prefix}.values``, ``{prefix}.scales``, ``{prefix}.zeros`` (with zero points) and
        ``{prefix}.quantization``: UTF-8 JSON ``{"version": 1, "format": .., "shape": [N, K]}`` as uint8.
        """
        tag = json.dumps({"version": VERSION, "format": self.format, "shape": list(self.shape)})
        named = {
            "values": self.values,
            "scales": self.scales,
            "zeros": self.zeros,
            "quantization": torch.tensor(list(tag.encode()), dtype=torch.uint8),
        }
        return {f"{prefix}.{name}": t for name, t in named.items() if t is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> QuantizedWeight:
        """The weight that ``tensors(prefix)`` named.

        Raises:
            ValueError: naming what is missing, of another version, or does not fit.
        """
        op = "QuantizedWeight"
        for name in ("quantization", "values", "scales"):
            check.require(f"{prefix}.{name}" in tensors, f"{op}: {prefix}.{name} is missing")
        try:
            tag = json.loads(bytes(tensors[f"{prefix}.quantization"].tolist()))
            version, format, (n, k) = tag["version"], str(tag["format"]), tag["shape"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{op}: {prefix}.quantization is not readable ({error})") from None
        check.require(
            version == VERSION,
            f"{op}: {prefix}.quantization has version {version}, this afnext reads {VERSION}",
        )
        return cls(
            tensors[f"{prefix}.values"],
            tensors[f"{prefix}.scales"],
            tensors.get(f"{prefix}.zeros"),
            format,
            (int(n), int(k)),
        )


def quantize(
    weight: Tensor | np.ndarray, format: str, *, zero_points: bool = False
) -> QuantizedWeight:
    """Round a weight to small integers with scales. Deterministic, for any number of threads.

    Args:
        weight: float32 or bfloat16 ``[N, K]``, unit stride in K, any K.
        format: "int8" (a scale for each row), "int8-g128", "int4-g128" or "int4-g32" (a scale for each
            group of 128 or 32 along K). Error relative to Gaussian weights: 0.8 %, 0.6 %, 9.7 %, 8.2 %.
            Or "fp8" (e4m3, a scale for each row; 2.6 %), for CUDA.
        zero_points: int4 only: groups need not be centred at zero; 9.5 % and 7.8 %.

    Raises:
        ValueError: naming the argument that is wrong; also where the weight has a NaN or infinity.
    """
    if isinstance(weight, np.ndarray):
        weight = from_numpy("quantize", "weight", weight)
    check.require(
        isinstance(weight, Tensor), "quantize: weight must be a torch tensor or NumPy array"
    )
    check.require(isinstance(format, str), f"quantize: format must be a name, got {format!r}")
    values, scales, zeros = call_detached(OP, weight.detach(), format, zero_points)
    n, k = weight.shape
    return QuantizedWeight(values, scales, zeros if zero_points else None, format, (n, k))
