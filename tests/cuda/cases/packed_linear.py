"""Packed linear layers: every format, 1 to 64 rows, sizes that fill nothing, every epilogue, rows of x apart.

The weights are made here, integers and scales at random, so that float64's own product of them is the oracle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cuda.harness import (
    HALVES,
    UNIT,
    Case,
    EmulatedArray,
    Kernels,
    assert_close,
    generator,
)

DENSE = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = 2.0**-24  # of float32
QUANTISED = ("int8", "int8-g128", "int4-g128", "int4-g128-zp", "int4-g32", "int4-g32-zp", "fp8")


@dataclass(frozen=True)
class Weights:
    """What is handed to ``pack``, and the weight [N, K] that it means."""

    format: str
    plain: Tensor | None  # dense formats
    values: Tensor | None
    scales: Tensor | None
    zeros: Tensor | None
    exact: Tensor

    def pack(self, kernels: Kernels, gate_up: bool) -> Any:
        n, k = self.exact.shape
        size = kernels.compiled.packed_bytes(self.format, n, k, gate_up, True)
        data = kernels.put(torch.full((size,), 0xFF, dtype=torch.uint8))
        if self.plain is not None:
            kernels.compiled.pack(kernels.put(self.plain), self.format, gate_up, data)
        else:
            parts = map(kernels.put, (self.values, self.scales, self.zeros))
            kernels.compiled.pack_quantized(*parts, self.format, n, k, gate_up, data)
        return data


def _weights(format: str, n: int, k: int, random: torch.Generator) -> Weights:
    """At random, so that products with Gaussian rows are of size 2 or so."""
    size = 2 / math.sqrt(max(k, 1))
    if format in DENSE:
        plain = (torch.randn(n, k, generator=random) * size).to(DENSE[format])
        return Weights(format, plain, None, None, None, plain.double())
    if format in ("int8", "fp8"):
        scales = (torch.rand(n, generator=random) + 0.5) * size / (73 if format == "int8" else 40)
        if format == "int8":
            values = torch.randint(-127, 128, (n, k), generator=random, dtype=torch.int8)
            exact = values.double()
        else:
            floats = (torch.randn(n, k, generator=random) * 40).to(torch.float8_e4m3fn)
            values, exact = floats.view(torch.uint8), floats.double()
        return Weights(format, None, values, scales, None, exact * scales.double()[:, None])
    group = 32 if "g32" in format else 128
    groups = -(-k // group)
    size /= 73 if format.startswith("int8") else 5
    scales = (torch.randn(n, groups, generator=random) * size).bfloat16()
    wide = scales.double().repeat_interleave(group, 1)[:, :k]
    if format.startswith("int8"):
        values = torch.randint(-127, 128, (n, k), generator=random, dtype=torch.int8)
        return Weights(format, None, values, scales, None, values.double() * wide)
    nibbles = torch.randint(0, 16, (n, k + k % 2), generator=random, dtype=torch.uint8)
    zeros, zero = None, torch.full((n, k), 8.0, dtype=torch.float64)
    if format.endswith("-zp"):
        zeros = torch.randint(0, 16, (n, groups), generator=random, dtype=torch.uint8)
        zero = zeros.double().repeat_interleave(group, 1)[:, :k]
    values = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    return Weights(format, None, values, scales, zeros, (nibbles[:, :k].double() - zero) * wide)


def _rows(kernels: Kernels, x: Tensor, gap: int) -> Any:
    """``x`` on the device with ``gap`` elements of NaN behind every row."""
    if gap == 0:
        return kernels.put(x)
    wide = kernels.put(F.pad(x, (0, gap), value=math.nan))
    k = x.shape[1]
    return EmulatedArray(wide.tensor[:, :k]) if isinstance(wide, EmulatedArray) else wide[:, :k]


@dataclass(frozen=True)
class Call:
    format: str
    dtype: torch.dtype
    m: int
    n: int
    k: int
    activation: str = ""
    bias: bool = False
    residual: bool = False
    gap: int = 0

    @property
    def name(self) -> str:
        extras = [self.activation, "bias" * self.bias, "residual" * self.residual]
        extras.append(f"gap{self.gap}" if self.gap else "")
        kind = str(self.dtype).removeprefix("torch.")
        sizes = f"{self.m}x{self.n}x{self.k}"
        return "-".join([self.format, kind, sizes, *filter(None, extras)])


def run(call: Call, kernels: Kernels) -> None:
    random, dtype = generator(call.name), call.dtype
    gate_up = call.activation == "silu_mul"
    columns = call.n // 2 if gate_up else call.n
    weights = _weights(call.format, call.n, call.k, random)
    x = torch.randn(call.m, call.k, generator=random).to(dtype)
    bias = torch.randn(call.n, generator=random).to(dtype) if call.bias else None
    residual = torch.randn(call.m, columns, generator=random).to(dtype) if call.residual else None
    out = kernels.empty(call.m, columns, dtype=dtype)
    kernels.compiled.packed_linear(
        _rows(kernels, x, call.gap),
        weights.pack(kernels, gate_up),
        kernels.put(bias),
        kernels.put(residual),
        *(call.format, call.n, call.k, gate_up, call.activation),
        out,
    )
    expected = x.double() @ weights.exact.T
    # Products and dequantised weights are exact; each of the float32 additions in a row (within a product,
    # from block to block, over warps and parts of K) may cut off an ulp of what has been summed so far.
    additions = 16 + call.k // 128 + 8
    error = 2 * ROUNDING * additions * (x.double().abs() @ weights.exact.abs().T)
    if bias is not None:
        expected = expected + bias.double()
    if call.activation == "gelu":
        expected, error = F.gelu(expected), 1.13 * error  # the slope of gelu is 1.13 at most
    elif gate_up:
        gate, up = expected[:, :columns], expected[:, columns:]
        error = 1.1 * error[:, :columns] * up.abs() + F.silu(gate).abs() * error[:, columns:]
        expected = F.silu(gate) * up
    # erfc, exp and what follows them: some float32 roundings more.
    error = error + 16 * ROUNDING * expected.abs()
    if residual is not None:
        expected = expected + residual.double()
    error = error + (2.0**-25 if dtype == torch.float16 else 0.0)  # float16's subnormals
    excess = (kernels.get(out).double() - expected).abs() - error
    assert not kernels.get(out).isnan().any(), "an output is NaN or was not written"
    assert_close(excess.clamp(min=0) + expected, expected, relative=1.01 * UNIT[dtype])


def run_unpack(
    format: str, out_dtype: torch.dtype, n: int, k: int, gate_up: bool, kernels: Kernels
) -> None:
    """Packing and back: exact in float32, else rounded once; every byte of int8 and fp8 among them."""
    weights = _weights(format, n, k, generator(f"{format}{n}{k}"))
    if weights.values is not None and weights.scales is not None and format in ("int8", "fp8"):
        flat = weights.values.view(torch.uint8).flatten()
        flat[:256] = torch.arange(256, dtype=torch.uint8)
        if format == "fp8":  # NaN is no weight
            flat[127], flat[255] = 0, 0
        floats = weights.values if format == "int8" else weights.values.view(torch.float8_e4m3fn)
        exact = floats.float() * weights.scales[:, None]
    else:
        exact = weights.exact.float()
    out = kernels.empty(n, k, dtype=out_dtype)
    kernels.compiled.unpack(weights.pack(kernels, gate_up), format, n, k, gate_up, out)
    assert torch.equal(kernels.get(out), exact.to(out_dtype))


def _calls() -> list[tuple[Call, bool]]:
    bf16, f16 = HALVES
    core = [
        Call("bfloat16", bf16, 1, 140, 512, bias=True),
        Call("float16", f16, 7, 64, 200, "gelu", bias=True, gap=3),
        Call("bfloat16", bf16, 33, 72, 96, "silu_mul"),
        Call("bfloat16", bf16, 64, 70, 520, residual=True),
        Call("int8", bf16, 2, 130, 256, residual=True),
        Call("int8", f16, 8, 66, 544, "silu_mul", bias=True),
        Call("int8-g128", bf16, 16, 70, 300, gap=4),
        Call("int8-g128", f16, 64, 40, 160, "gelu"),
        Call("int4-g128", bf16, 1, 140, 1056, "silu_mul", residual=True),
        Call("int4-g128-zp", f16, 8, 64, 129, bias=True),
        Call("int4-g32", bf16, 33, 70, 288, "gelu", residual=True),
        Call("int4-g32-zp", bf16, 7, 70, 544, gap=8),
        Call("int4-g32-zp", f16, 20, 64, 64),
        Call("fp8", bf16, 2, 70, 512, bias=True, residual=True),
        Call("fp8", f16, 33, 66, 72, "silu_mul"),
        Call("int8", bf16, 8, 2600, 72, bias=True),  # more tiles than sums are kept of
        Call("int8", bf16, 20, 40, 2060, "silu_mul", bias=True),  # in parts of K
        Call("bfloat16", bf16, 3, 1, 1),
        Call("bfloat16", bf16, 3, 5, 0, bias=True),
    ]
    calls = [(call, True) for call in core]
    for format in (*DENSE, *QUANTISED):
        for dtype in HALVES:
            if DENSE.get(format, dtype) != dtype:
                continue
            for m in (1, 2, 7, 8, 16, 33, 64):
                calls.append((Call(format, dtype, m, 202, 776, bias=True, residual=True), False))
            calls.append((Call(format, dtype, 5, 136, 2592, "silu_mul", bias=True), False))
            calls.append((Call(format, dtype, 17, 190, 1111, "gelu", gap=9), False))
    return calls


def _cases() -> list[Case]:
    made = [Case(call.name, partial(run, call), core) for call, core in _calls()]
    for format in (*DENSE, *QUANTISED):
        outs = [DENSE[format]] if format in DENSE else [torch.float32, *HALVES]
        for out in outs:
            kind = str(out).removeprefix("torch.")
            for n, k, gate_up in ((70, 264, True), (68, 131, False)):
                name = f"unpack-{format}-{kind}-{n}x{k}{'-gate_up' * gate_up}"
                made.append(Case(name, partial(run_unpack, format, out, n, k, gate_up)))
    return made


CASES = _cases()
