"""Rotary embedding of a prefill and of one token beside the usual torch formula and a plain copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from afnext import ops

from .case import Case

SHAPES = [(4096, torch.bfloat16), (4096, torch.float32), (1, torch.bfloat16)]
HEADS, DIM = 28, 128


def torch_rotate(x: Tensor, times: Tensor, inv_freq: Tensor) -> Tensor:
    """As transformers writes it: float32 phases, cos and sin cast to x's dtype."""
    angles = (times[:, None] * inv_freq).repeat(1, 2)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def rotation(tokens: int, dtype: torch.dtype) -> Case:
    """One token's x stays in the caches."""
    inv_freq = 15_300_000.0 ** (-torch.arange(DIM // 2) / (DIM // 2))
    x, times = torch.randn(tokens, HEADS, DIM).to(dtype), torch.arange(tokens).float()
    name = str(dtype).removeprefix("torch.")
    return Case(
        f"x [{tokens}, {HEADS}, {DIM}] {name}",
        label="ops.rotate",
        ours=lambda: ops.rotate(x, times, inv_freq),
        peers={"torch": lambda: torch_rotate(x, times, inv_freq), "x.clone()": x.clone},
        bytes=2 * x.numel() * dtype.itemsize if tokens > 1 else 0,
        dtype=name,
    )


def cases() -> Iterator[Case]:
    """A prefill in both dtypes, one token of a decode step."""
    for tokens, dtype in SHAPES:
        yield rotation(tokens, dtype)
