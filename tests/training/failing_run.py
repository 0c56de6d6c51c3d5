"""A small run under ``torchrun`` whose second process fails in some way before a step; each step's losses are
noted. ``python -m tests.training.failing_run SOURCES FOLDER HOW [STEP]``."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from afnext.errors import AfnextError
from afnext.ops import runtime
from afnext.training import loop, stage
from afnext.training.data.batches import Batches, Plan, Step
from afnext.training.run import export
from afnext.training.run.meters import Meters
from afnext.training.stage import StageRun
from tests.training.mesh_runs import small

TIMEOUT = 8.0  # where a rank is to be late
PATIENCE = 120.0  # elsewhere: a first checkpoint and a picture take a slow machine long
CHANGES: dict[str, dict[str, Any]] = {
    "another recipe": {"seed": 7},
    "another device": {"device": "cuda"},
}


def kills() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stands_still() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def terminates() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def raises() -> None:
    raise AfnextError("the moon is full")


def main(sources: str, folder: str, how: str, step: str = "3") -> None:
    patience = TIMEOUT if how in ("late", "saving", "exporting", "stopped") else PATIENCE
    config = dataclasses.replace(small(Path(sources), 6), timeout=patience)
    rank, first = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    gradients, made, add = StageRun._gradients, Batches.__getitem__, Meters.add
    ways = {"killed": kills, "stopped": stands_still, "terminated": terminates, "raises": raises}
    fails = ways.get(how)

    def failing(self: StageRun, of: Step) -> dict[str, float]:
        if fails and first and self.progress.step == int(step):
            self.run.checkpoints.finish()  # it is written meanwhile: whether it is there would be chance
            if rank == 1:
                fails()
        return gradients(self, of)

    def late(self: Batches, plan: Plan) -> Step:
        if how == "late" and rank == 1 and plan.step == int(step):
            time.sleep(1000)
        return made(self, plan)

    write = dcp.FileSystemWriter.write_data

    def hanging(self: dcp.FileSystemWriter, *given: Any) -> Any:
        if how == "saving" and rank == 1:
            time.sleep(1000)
        return write(self, *given)

    def exporting(*given: Any) -> None:
        time.sleep(1000)

    dcp.FileSystemWriter.write_data = hanging  # type: ignore[method-assign]
    if how == "exporting":
        export.export = exporting
    stage.LEISURE = 1.0

    def noted(self: Meters, losses: Mapping[str, float], *rest: object) -> None:
        if rank == 0:
            with (Path(folder) / "losses.jsonl").open("a") as file:
                file.write(json.dumps([*losses.values()]) + "\n")
        add(self, losses, *rest)  # type: ignore[arg-type]

    StageRun._gradients, Meters.add = failing, noted  # type: ignore[method-assign]
    Batches.__getitem__ = late  # type: ignore[method-assign]
    stages: list[str] = []
    if rank == 1:
        config = dataclasses.replace(config, **CHANGES.get(how, {}))
        stages = ["all"] if how == "another choice of stages" else []
        if how == "another compiled module":
            runtime.module_path = lambda: Path(__file__)
    try:
        loop.train(config, Path(folder) / "run", stages=stages)
    except AfnextError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
