"""Layers that run on ``afnext.ops``, or on torch's own functions under autocast.

One rule decides: inside ``torch.autocast`` torch's functions run, because they know its casts (weights
cast once a region, norms and softmax in float32); elsewhere the ops run, and they differentiate too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afnext import ops


def under_autocast(x: Tensor) -> bool:
    """Whether torch's own functions should run on ``x`` instead of ops."""
    return torch.is_autocast_enabled(x.device.type)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``."""
    return F.linear(x, weight, bias) if under_autocast(x) else ops.linear(x, weight, bias)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    return F.silu(gate) * up if under_autocast(gate) else ops.silu_mul(gate, up)


class Linear(nn.Linear):
    """``nn.Linear`` on ``ops.linear``; PEFT and quantisers find it as the ``nn.Linear`` it is."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def embedding(count: int, size: int) -> nn.Embedding:
    """``nn.Embedding`` left uninitialised: drawing normals on the meta device imports torch's compiler
    (seconds), and the model draws its weights itself.
    """
    return nn.Embedding(count, size, _weight=torch.empty(count, size))


class RMSNorm(nn.Module):
    """Root-mean-square norm in transformers' order: float32, rounded to x's dtype, times weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if under_autocast(x):
            exact = x.float()
            exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
            return self.weight * exact.to(x.dtype)
        return ops.rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm``, which wants parameters at least as exact as its input: those of a layer that was
    gathered in bfloat16 are not.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float32 or self.weight.dtype == torch.float32:
            return super().forward(input)
        weight, bias = self.weight.float(), None if self.bias is None else self.bias.float()
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Frequencies(nn.Module):
    """float32 inverse frequencies ``[n]`` that move with the model but are never rounded.

    ``.to(torch.bfloat16)`` would destroy a plain buffer of them.
    """

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self._exact = values
        self.register_buffer("values", values, persistent=False)

    def _apply(self, fn: object, recurse: bool = True) -> Frequencies:
        super()._apply(fn, recurse)
        self.values = self._exact.to(self.values.device)
        return self


def inverse_frequencies(theta: float, dim: int) -> Tensor:
    """``theta ** (-2i / dim)`` in float32, in transformers' order of operations."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return 1.0 / (theta**exponents)
