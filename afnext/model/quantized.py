"""Weights of linear layers that a folder holds as small integers, beside the network that they belong to.

A parameter may carry the integers that it stands for: the engine multiplies by them as they are, and saving
writes them. It loses them where its values are changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afnext.ops.quantize import QuantizedWeight

PARTS = ("values", "scales", "zeros", "quantization")
"""What stands in a folder instead of ``NAME``: ``NAME.values`` and so on, see ``QuantizedWeight.tensors``."""


def keep(parameter: Tensor, weight: QuantizedWeight) -> None:
    """Let a parameter ``[N, K]`` carry the integers that it stands for."""
    parameter.__dict__["_quantized"] = weight, _version(parameter)


def kept(parameter: Tensor) -> QuantizedWeight | None:
    """The integers that a parameter stands for; None where there are none, or it changed since."""
    weight, version = parameter.__dict__.get("_quantized", (None, None))
    return weight if version == _version(parameter) else None


def forget_in(model: nn.Module) -> None:
    """Have the parameters of a model stand for themselves."""
    for parameter in model.parameters():
        parameter.__dict__.pop("_quantized", None)


def kept_together(parameters: Sequence[Tensor]) -> QuantizedWeight | None:
    """The integers of several parameters, one above the other; None where not all have them in one format."""
    weights = [w for w in map(kept, parameters) if w is not None]
    if len(weights) < len(parameters) or len({(w.format, w.zeros is None) for w in weights}) > 1:
        return None
    zeros = [w.zeros for w in weights if w.zeros is not None]
    return QuantizedWeight(
        torch.cat([w.values for w in weights]),
        torch.cat([w.scales for w in weights]),
        torch.cat(zeros) if zeros else None,
        weights[0].format,
        (sum(w.shape[0] for w in weights), weights[0].shape[1]),
    )


def kept_in(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Of the linear layers of a model, by the name of their weight."""
    found = {
        f"{name}.weight": kept(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    return {name: weight for name, weight in found.items() if weight is not None}


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version
