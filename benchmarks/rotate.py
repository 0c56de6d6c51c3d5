"""Rotary embedding of a prefill and of one token beside the usual torch formula and a plain copy."""

from __future__ import annotations

import torch
from torch import Tensor

from afnext import ops

from .timing import bandwidth, compare, milliseconds


def torch_rotate(x: Tensor, times: Tensor, inv_freq: Tensor) -> Tensor:
    """As transformers writes it: float32 phases, cos and sin cast to x's dtype."""
    angles = (times[:, None] * inv_freq).repeat(1, 2)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def run() -> None:
    """Print the table."""
    inv_freq = 15_300_000.0 ** (-torch.arange(64) / 64)
    for tokens, heads, dtype in [
        (4096, 28, torch.bfloat16),
        (4096, 28, torch.float32),
        (1, 28, torch.bfloat16),
    ]:
        x, times = torch.randn(tokens, heads, 128).to(dtype), torch.arange(tokens).float()
        print(f" x [{tokens}, {heads}, 128] {str(dtype).removeprefix('torch.')}")
        compare(
            {
                "ops.rotate": lambda x=x, times=times: ops.rotate(x, times, inv_freq),  # type: ignore[misc]
                "torch": lambda x=x, times=times: torch_rotate(x, times, inv_freq),  # type: ignore[misc]
                "x.clone()": x.clone,
            }
        )
        moved = 2 * x.numel() * x.element_size()
        print(f"  limit: memory {milliseconds(moved / bandwidth())} for {moved / 1e6:.3g} MB")
