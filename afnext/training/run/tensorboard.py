"""The log's numbers for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from afnext.errors import AfnextError
from afnext.training.config import TrainConfig
from afnext.training.run.records import START
from afnext.training.run.state import Progress

FOLDER = "tensorboard"


class Board:
    """Writes records of training and of what is held out under ``RUN/tensorboard``; their step counts on from
    stage to stage.

    Args:
        run: its folder.
        config: its chain.
        done: where it goes on from, if it does: what was written of later steps is void.

    Raises:
        AfnextError: TensorBoard is not installed.
    """

    def __init__(self, run: Path, config: TrainConfig, done: Progress | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise AfnextError(
                "--tensorboard needs the tensorboard package: pip install 'afnext[tensorboard]'"
            ) from None
        before = list(accumulate((stage.steps for stage in config.stages), initial=0))
        self._before = dict(zip((stage.name for stage in config.stages), before, strict=False))
        void = 1 + (before[done.stage] + done.step if done else 0)
        self._writer = SummaryWriter(str(run / FOLDER), purge_step=void)

    def add(self, kind: str, record: Mapping[str, Any]) -> None:
        """A record of the log; only those of a step that was taken are ours."""
        if kind == START or record.get("stage") not in self._before or "step" not in record:
            return
        step = self._before[record["stage"]] + record["step"]
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("step", "minutes"):
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
