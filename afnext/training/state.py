"""Checkpoints of a run: written whole or not at all, read without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from afnext.errors import CheckpointError


@dataclass
class Progress:
    """Where a run stands: the stage, the next step in it, and the seconds spent so far."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0


def save(
    path: Path, modules: nn.Module, optimizers: Sequence[Optimizer], progress: Progress
) -> None:
    """Write the weights, the optimizers, torch's random state and the progress, atomically."""
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "weights": modules.state_dict(),
            "optimizers": [o.state_dict() for o in optimizers],
            "random": torch.get_rng_state(),
            "progress": vars(progress),
        },
        partial,
    )
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; only tensors and plain values are ever unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"cannot resume from {path}: {error}") from None
