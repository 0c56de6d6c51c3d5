"""Checkpoints of a run: written whole or not at all, read without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from afnext.errors import AfnextError, CheckpointError

BROKEN = 10
"""Steps in a row with gradients that are not finite, and left out, that end a run."""


@dataclass
class Progress:
    """Where a run stands: the stage, the next step in it, and the seconds spent so far."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    broken: int = 0  # steps in a row whose gradients were not finite

    def check(self, finite: bool, where: str) -> None:
        """Count a step; raises :class:`AfnextError` where too many in a row were not finite."""
        self.broken = 0 if finite else self.broken + 1
        if self.broken >= BROKEN:
            raise AfnextError(
                f"{where}: the gradients of {BROKEN} steps in a row were not finite, the last one "
                f"step {self.step}; the checkpoint is of before: try a smaller learning rate"
            )


def save(
    path: Path,
    weights: Mapping[str, Any],
    optimizers: Sequence[Mapping[str, Any]],
    progress: Progress,
) -> None:
    """Write the states of modules and optimizers, torch's random state and the progress, atomically.

    Raises:
        AfnextError: the disk is full, or cannot be written to; the checkpoint before is as it was.
    """
    partial = path.with_suffix(".partial")
    content = {
        "weights": weights,
        "optimizers": list(optimizers),
        "random": torch.get_rng_state(),
        "progress": vars(progress),
    }
    try:
        torch.save(content, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        partial.unlink(missing_ok=True)
        raise AfnextError(f"cannot write {path}: {error}") from None


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; only tensors and plain values are ever unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"cannot resume from {path}: {error}") from None
