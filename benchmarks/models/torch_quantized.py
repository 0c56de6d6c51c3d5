"""Linear layers on torch's own quantised products, put in place of ``nn.Linear`` as gpt-fast does.

Weights are rounded and packed by torch's functions; activations stay bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32
MANY_ROWS = 32
"""From here on gpt-fast's formula, a plain product with the weight converted on the fly, is faster."""


class Int8Linear(nn.Module):
    """int8 weights with a scale a row: ``torch._weight_int8pack_mm`` for few rows of x.

    Args:
        linear: the layer that this one stands in for.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scales = weight.abs().amax(1).float() / 127
        self.weight = torch.empty(weight.shape, dtype=torch.int8)
        for rows in torch.arange(len(weight)).split(1024):
            self.weight[rows] = (weight[rows].float() / scales[rows, None]).round().to(torch.int8)
        self.scales = scales.to(weight.dtype)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K] -> [..., N]``."""
        rows = x.flatten(0, -2)
        if len(rows) < MANY_ROWS:
            out = torch._weight_int8pack_mm(rows, self.weight, self.scales)
        else:
            out = F.linear(rows, self.weight.to(x.dtype)) * self.scales
        return _with_bias(out, self.bias).unflatten(0, x.shape[:-1])


class Int4Linear(nn.Module):
    """int4 weights with a scale and a zero point for each 32: ``aten::_weight_int4pack_mm_for_cpu``.

    Args:
        linear: the layer that this one stands in for.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        n, k = weight.shape
        values = torch.empty(n, k, dtype=torch.int32)
        self.scales_zeros = torch.empty(k // GROUP, n, 2, dtype=weight.dtype)
        for rows in torch.arange(n).split(1024):
            groups = weight[rows].float().unflatten(1, (-1, GROUP))
            low, high = groups.aminmax(dim=2)
            scales = ((high - low) / 15).clamp(min=1e-9)
            # A value q stands for (q - 8) * scale + zero.
            zeros = low + 8 * scales
            q = ((groups - low[..., None]) / scales[..., None]).round().clamp(0, 15)
            values[rows] = q.flatten(1).to(torch.int32)
            pairs = torch.stack((scales, zeros), -1).transpose(0, 1)
            self.scales_zeros[:, rows] = pairs.to(weight.dtype)
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K] -> [..., N]``."""
        rows = x.flatten(0, -2)
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.weight, GROUP, self.scales_zeros
        )
        return _with_bias(out, self.bias).unflatten(0, x.shape[:-1])


def _with_bias(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out.add_(bias)


def replace_linears(model: nn.Module, quantization: str) -> None:
    """Replace every linear layer of transformers' model; the head has int8 weights in either case."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        kind = Int4Linear if quantization == "int4" and name != "lm_head" else Int8Linear
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, kind(module))
