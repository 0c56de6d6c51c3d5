"""Muon for the matrices of the layers, AdamW for everything else, and the learning-rate curve."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from afnext.training.config import StageConfig


def build_optimizers(
    named: Iterable[tuple[str, nn.Parameter]], learning_rate: float
) -> list[Optimizer]:
    """Optimizers over the parameters that require gradients.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) with update sizes matched to
    AdamW's (Liu et al. 2025, arXiv 2502.16982), so that both share one learning rate.
    """
    matrices, others = [], []
    for name, parameter in named:
        if parameter.requires_grad:
            is_matrix = parameter.ndim == 2 and re.search(r"\.layers\.\d+\.", name)
            (matrices if is_matrix else others).append(parameter)
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(
            Muon(matrices, learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        optimizers.append(AdamW(others, learning_rate, betas=(0.9, 0.98), weight_decay=0.01))
    return optimizers


def rate_at(stage: StageConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, flat, then a cosine down to ``final_rate``."""
    warm = min(1.0, (step + 1) / max(1, stage.warmup_steps))
    progress = step / stage.steps
    if progress < stage.flat:
        return stage.learning_rate * warm
    fall = 0.5 * (1 + math.cos(math.pi * (progress - stage.flat) / (1 - stage.flat)))
    return stage.learning_rate * warm * (stage.final_rate + (1 - stage.final_rate) * fall)
