"""Muon for the matrices of layers and adaptor, AdamW for everything else, and the learning-rate curve."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from afnext.errors import AfnextError
from afnext.training.config import ADAPTER, RecipeError, StageConfig

MATRICES = r"\.layers\.\d+\.|projector\."
"""Where Muon's matrices are: in layers and in the adaptor, not embeddings, heads or convolutions."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of [N, m, n] to about one by Newton-Schulz iterations, in bfloat16."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, gram, x, beta=3.4445)
    return (x if wide else x.transpose(1, 2)).to(matrices.dtype)


class Muon(Optimizer):
    """Muon for matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    Updates are scaled to AdamW's size, 0.2 * sqrt(max(m, n)) (Liu et al. 2025, arXiv 2502.16982).
    ``torch.optim.Muon`` computes the same one matrix at a time; here matrices of one shape go together.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            # A sharded matrix is put together first: its direction is of all of it.
            shapes: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(average, momentum)
                if isinstance(update, DTensor):
                    update = update.full_tensor()
                shapes.setdefault(parameter.shape, []).append((parameter, update))
            for shape, pairs in shapes.items():
                directions = orthogonalise(torch.stack([update for _, update in pairs]))
                for (parameter, _), direction in zip(pairs, directions, strict=True):
                    if isinstance(parameter, DTensor):
                        mesh, placements = parameter.device_mesh, parameter.placements
                        direction = distribute_tensor(
                            direction, mesh, placements, src_data_rank=None
                        )
                    parameter.mul_(1 - rate * group["decay"])
                    parameter.add_(direction, alpha=-rate * 0.2 * math.sqrt(max(shape)))


def parts_of(
    names: Iterable[str], train: Mapping[str, float], freeze: Iterable[str]
) -> dict[str, list[str]]:
    """The parameters of each pattern, of ``train`` and then of ``freeze``, by name. Adapters (``lora``) match
    only patterns that name them, and are of none where there is no such pattern: then they rest.

    Raises:
        AfnextError: a parameter matches no pattern or two, or a pattern matches nothing.
    """
    patterns = (*train, *freeze)
    adapted = any(ADAPTER in pattern for pattern in patterns)
    names = [name for name in names if adapted or ADAPTER not in name]
    found = {
        pattern: [
            n for n in names if (ADAPTER in n) == (ADAPTER in pattern) and re.search(pattern, n)
        ]
        for pattern in patterns
    }
    if empty := [pattern for pattern, matched in found.items() if not matched]:
        raise AfnextError(f"the pattern {empty[0]!r} matches no parameter")
    matches = Counter(chain.from_iterable(found.values()))
    for name in names:
        if matches[name] != 1:
            matching = [repr(pattern) for pattern, matched in found.items() if name in matched]
            said = " and ".join(matching) or "nothing"
            raise AfnextError(f"{name} must be trained or frozen by one pattern; it matches {said}")
    return found


def parts_of_stage(names: Iterable[str], stage: StageConfig) -> dict[str, list[str]]:
    """As :func:`parts_of`, of a stage, whose name begins the message of what does not fit.

    Raises:
        RecipeError: as :func:`parts_of` does.
    """
    try:
        return parts_of(names, stage.train, stage.freeze)
    except AfnextError as error:
        raise RecipeError(f"{stage.name}: {error}") from None


def build_optimizers(
    parameters: Mapping[str, nn.Parameter], parts: Mapping[str, Sequence[str]], stage: StageConfig
) -> list[Optimizer]:
    """Optimizers over the parts of a stage that are trained; each group holds its full rate as ``peak``.

    AdamW is torch's fused one: one pass over parameters, gradients and moments.
    """
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for pattern, rate in stage.train.items():
        names = parts[pattern]
        in_layers = {
            name
            for name in names
            if stage.optimizer == "muon"
            and parameters[name].ndim == 2
            and re.search(MATRICES, name)
        }
        for groups, chosen in (
            (matrices, [parameters[n] for n in names if n in in_layers]),
            (others, [parameters[n] for n in names if n not in in_layers]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate})
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, 0.0, weight_decay=stage.muon_weight_decay))
    if others:
        decay = stage.weight_decay
        optimizers.append(AdamW(others, betas=(0.9, 0.98), weight_decay=decay, fused=True))
    return optimizers


def rate_at(stage: StageConfig, step: int) -> float:
    """What learning rates are multiplied with in a step: linear warm-up, flat, then a cosine down to
    ``final_rate``.
    """
    warm = min(1.0, (step + 1) / max(1.0, stage.warmup * stage.steps))
    progress = step / stage.steps
    if progress < stage.flat:
        return warm
    fall = 0.5 * (1 + math.cos(math.pi * (progress - stage.flat) / (1 - stage.flat)))
    return warm * (stage.final_rate + (1 - stage.final_rate) * fall)
