"""Quantised weights in plain torch: what the kernels of ``quantize`` and of their packing do.

The formats are described in ``csrc/include/afnext/quantize.h`` and ``pack_quantized.h``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _check as check

FORMATS = {
    "int8": (8, 0),
    "int8-g128": (8, 128),
    "int4-g128": (4, 128),
    "int4-g32": (4, 32),
    "fp8": (8, 0),
}
BLOCK = 128  # elements of K that share a scale of x


def is_quantized(format: str) -> bool:
    """Whether a packing of this name holds integers."""
    return format.startswith("int")


def quantize(
    weight: Tensor, bits: int, group: int, zero_points: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, scales and zeros of ``ops.quantize``; ``group`` 0 is a whole row."""
    n, k = weight.shape
    width = group or max(k, 1)
    groups = -(-k // width) if group else 1
    x = F.pad(weight.float(), (0, groups * width - k)).view(n, groups, width)
    check.require(
        bool(x.isfinite().all()), "quantize: weight must be finite, it has NaN or infinity"
    )
    low, high = x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)
    largest = torch.where(high > -low, high, low)
    scale_dtype = torch.bfloat16 if group else torch.float32

    def encode(plain: Tensor, zero: Tensor | int, limits: tuple[int, int]) -> tuple[Tensor, ...]:
        scale = plain.to(scale_dtype).float()
        scale = torch.where(scale.abs() < 1e-36, 0, scale)
        inverse = torch.where(scale == 0, 0, 1 / scale)
        if zero_points:
            zero = (-low * inverse + 0.5).clamp(max=15).floor()
        offset = torch.as_tensor(zero, device=x.device).expand_as(scale)[..., None]
        values = (x * inverse[..., None] + offset).round().clamp(*limits)
        error = (values - offset - x * inverse[..., None]).square().sum(-1) * scale.square()
        return values, scale, offset[..., 0], error

    if bits == 8:
        values, scale, zero, _ = encode(largest.abs() / 127, 0, (-127, 127))
    else:
        plain = high / 15 - low / 15 if zero_points else largest / -8
        best = encode(plain, 8, (0, 15))
        for i in range(1, 16):
            tried = encode(plain * (1.08 - 0.03 * i), 8, (0, 15))
            better = tried[3] < best[3]
            best = tuple(
                torch.where(better if t.dim() == 2 else better[..., None], t, b)
                for t, b in zip(tried, best, strict=True)
            )
        values, scale, zero, _ = best
    flat = values.to(torch.uint8 if bits == 4 else torch.int8).reshape(n, groups * width)
    flat = flat[:, : k + k % 2] if bits == 4 else flat[:, :k].contiguous()
    if bits == 4:
        flat = flat[:, 0::2] | flat[:, 1::2] << 4
    zeros = zero.to(torch.uint8) if zero_points else zero.new_empty(0, dtype=torch.uint8)
    return flat, scale.to(scale_dtype) if group else scale[:, 0], zeros


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (e4m3), scales and no zeros of ``ops.quantize``: a row's largest magnitude becomes 448."""
    x = weight.float()
    check.require(
        bool(x.isfinite().all()), "quantize: weight must be finite, it has NaN or infinity"
    )
    largest = x.abs().amax(-1) if x.shape[1] else x.new_zeros(x.shape[0])
    scale = largest / 448
    scale = torch.where(scale < 1e-36, 0, scale)
    inverse = torch.where(scale == 0, 0, 1 / scale)
    values = (x * inverse[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return values, scale, values.new_empty(0, dtype=torch.uint8)


def unpack_quantized(data: Tensor, format: str, n: int, k: int, gate_up: bool) -> Tensor:
    """The float32 weight ``[n, k]`` of a packing (``csrc/include/afnext/pack_quantized.h``)."""
    zero_points = "-zp" in format
    bits, group = FORMATS[format.partition(":")[0].removesuffix("-zp")]
    columns, width = (n // 2, 16) if gate_up else (n, 32)
    panels, blocks = -(-columns // width), -(-k // BLOCK)
    if n == 0 or k == 0:
        return data.new_zeros(n, k, dtype=torch.float32)
    data = data.view(panels, -1)
    if group == 0:
        scales = data[:, :128].contiguous().view(torch.float32)[:, None]  # [panels, 1, 32]
        zeros = torch.full_like(scales, 128)
        groups = data[:, 128:].reshape(panels, blocks, -1)
        group = BLOCK
    else:
        groups = data.reshape(panels, blocks * BLOCK // group, -1)
        scales = groups[..., :64].contiguous().view(torch.bfloat16).float()
        zeros = torch.full_like(scales, 128 if bits == 8 else 8)
        if zero_points:
            zeros = groups[..., 64:128].contiguous().view(torch.bfloat16).float()
        groups = groups[..., 128 if zero_points else 64 :]
    steps = groups.reshape(panels, groups.shape[1], -1, 32, 4)  # .., step, column, byte
    if bits == 4:
        steps = torch.stack([steps & 15, steps >> 4], 3).flatten(2, 3)
    values = steps.permute(0, 3, 1, 2, 4).reshape(panels, 32, groups.shape[1], group).float()
    rows = ((values - zeros.mT[..., None]) * scales.mT[..., None]).flatten(2)[..., :k]
    halves = [rows[:, :16], rows[:, 16:]] if gate_up else [rows]
    return torch.cat([half.reshape(panels * width, k)[:columns] for half in halves])


def round_rows(x: Tensor) -> Tensor:
    """``x`` as 8-bit integers of each 128 elements of a row see it."""
    k = x.shape[-1]
    blocks = F.pad(x.float(), (0, -k % BLOCK)).unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    rounded = (blocks / torch.where(scale == 0, 1, scale)).round() * scale
    return rounded.flatten(-2)[..., :k]
